"""Linear heads for six penalties: regraft's, all at once, against scikit-learn's, one after the other.

Run: python benchmarks/heads.py [--images N] [--cut NAME] [--data NAME] [--rounds N] [--threads N] [--record FILE]
Takes about three minutes on two cores, the peer nearly all of it.

The features are real: of an ImageNet ResNet-50 at a cut, of CIFAR images at 32 px, standardised beforehand for the
peer, in float32, which both solve in. scikit-learn's LogisticRegression (lbfgs) has its default tolerance and as many
iterations as it needs; its RidgeClassifier solves per penalty too. Losses are those that are minimised, mean
cross-entropy + penalty / 2 * |W|^2, in float64, for each solution alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# First, since it sets how torch's threads wait, which torch reads when it is loaded.
import regraft  # noqa: F401

# isort: split
import numpy as np
import torch
from running import IMAGE_SIZE, LOAD_BEFORE, NETWORK
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy

from regraft.data import load_dataset, split_budget
from regraft.learn.batches import ImageBatches
from regraft.learn.features import extract
from regraft.learn.hardware import set_threads
from regraft.learn.logistic import logistic
from regraft.learn.ridge import ridge
from regraft.learn.solve import scaling_of
from regraft.networks import Trunk, body_for_cuts, build, load_body, obtain_weights
from regraft.spec import Source

PENALTIES = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
ITERATIONS = 10_000  # at most; both stop long before
Heads = list[tuple[Tensor, Tensor]]  # weight (classes, d) and bias (classes,), for standardised features, per penalty


def features_of(data: str, cut: str, images: int) -> tuple[Tensor, Tensor, int]:
    """Standardised features (n, d) float32, labels (n,), number of classes."""
    weights = obtain_weights(Source(network=NETWORK, weights="pretrained"))
    body = body_for_cuts(build(NETWORK, seed=0), [cut], pooled=True)
    load_body(body, weights.state(), origin=NETWORK)
    trunk = Trunk(body, frozen=True)
    trunk.to(memory_format=torch.channels_last)
    whole = load_dataset(data)
    per_class = images // len(whole.classes)
    chosen, _ = split_budget(whole.train.labels, per_class=per_class, validation=0.0, seed=0, classes=whole.classes)
    preprocessing = weights.preprocessing.model_copy(update={"image_size": IMAGE_SIZE})
    batches = ImageBatches(
        whole.train.images[chosen], whole.train.labels[chosen], preprocessing, device=torch.device("cpu")
    )
    x = extract(trunk, batches)[cut]
    return scaling_of(x)(x).float(), batches.labels, len(whole.classes)


def ours(x: Tensor, y: Tensor, classes: int, penalties: Sequence[float]) -> Heads:
    solved = logistic(x, y, classes=classes, penalties=penalties, max_iterations=ITERATIONS)
    return [(s.weight, s.bias) for s in solved]


def our_ridge(x: Tensor, y: Tensor, classes: int, penalties: Sequence[float]) -> Heads:
    return [(s.weight, s.bias) for s in ridge(x, y, classes=classes, penalties=penalties)]


def peers(x: Tensor, y: Tensor, classes: int, penalties: Sequence[float]) -> Heads:
    found = []
    for penalty in penalties:
        model = LogisticRegression(C=1 / (len(x) * penalty), max_iter=ITERATIONS).fit(x.numpy(), y.numpy())
        found.append((torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)))
    return found


def peer_ridge(x: Tensor, y: Tensor, classes: int, penalties: Sequence[float]) -> Heads:
    """RidgeClassifier's targets are -1 and 1, whence weights twice those for 0 and 1."""
    found = []
    for penalty in penalties:
        model = RidgeClassifier(alpha=len(x) * penalty).fit(x.numpy(), y.numpy())
        found.append((torch.from_numpy(model.coef_) / 2, torch.from_numpy(model.intercept_ + 1) / 2))
    return found


def logistic_loss(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> float:
    logits = x.double() @ weight.double().T + bias.double()
    return float(cross_entropy(logits, y) + 0.5 * penalty * weight.double().square().sum())


def ridge_loss(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> float:
    errors = x.double() @ weight.double().T + bias.double() - torch.eye(len(bias))[y]
    return float(0.5 * errors.square().sum(1).mean() + 0.5 * penalty * weight.double().square().sum())


Solver = Callable[[Tensor, Tensor, int, Sequence[float]], Heads]
COMPARISONS: dict[str, tuple[Solver, Solver, Callable[..., float]]] = {
    "logistic": (ours, peers, logistic_loss),
    "ridge": (our_ridge, peer_ridge, ridge_loss),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--cut", default="layer2.2")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--record", type=Path, help="file for the numbers as JSON")
    options = parser.parse_args()
    threads = set_threads(options.threads)
    x, y, classes = features_of(options.data, options.cut, options.images)
    task = f"{options.data}, {options.cut}: {len(x):,} x {x.shape[1]:,} features, {classes} classes, {threads} threads"
    print(f"{task}, load before {LOAD_BEFORE}", flush=True)
    hardest = min(PENALTIES)
    results = {}
    for kind, (our_solver, peer_solver, loss) in COMPARISONS.items():
        contenders = {
            "regraft, six at once": (our_solver, PENALTIES),
            f"regraft, {hardest:g} alone": (our_solver, [hardest]),
            "scikit-learn, one by one": (peer_solver, PENALTIES),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        losses: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, (solver, penalties) in contenders.items():
                start = time.perf_counter()
                heads = solver(x, y, classes, penalties)
                seconds[name].append(time.perf_counter() - start)
                losses[name] = [loss(x, y, *head, p) for head, p in zip(heads, penalties, strict=True)]
        results[kind] = {"seconds": seconds, "losses": losses}
        report(kind, seconds, losses)
    if options.record:
        content = {"task": task, "load_before": LOAD_BEFORE, "penalties": PENALTIES, "results": results}
        options.record.write_text(json.dumps(content, indent=1) + "\n")


def report(kind: str, seconds: dict[str, list[float]], losses: dict[str, list[float]]) -> None:
    """Median seconds, how many times as fast as the peer, and each loss above the least found, relative."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peer = medians["scikit-learn, one by one"]
    least = np.min([values for values in losses.values() if len(values) == len(PENALTIES)], axis=0)
    print(f"\n{kind:<26} {'seconds':>8} {'x peer':>7}  loss above the least found, relative, for each penalty")
    print(f"{'':<43} " + " ".join(f"{p:>8g}" for p in PENALTIES))
    for name, values in losses.items():
        ratio = f"{peer / medians[name]:.1f}" if len(values) == len(PENALTIES) else ""
        gaps = " ".join(f"{value / low - 1:>8.0e}" for value, low in zip(values, least, strict=False))
        print(f"{name:<26} {medians[name]:>8.2f} {ratio:>7}  {gaps}")
    print(f"{'loss':<43} " + " ".join(f"{low:>8.4f}" for low in least), flush=True)


if __name__ == "__main__":
    main()
