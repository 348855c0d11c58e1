"""Results made by hand, shaped like a finished study, for the tests of analysis and show."""

from __future__ import annotations

import math

import numpy as np

from regraft.spec import Study
from regraft.study.results import Cell, Missing, Results

HOSTILE = "</script><img src=x onerror=alert(1)>"
ODD_NAMES = (HOSTILE, "\u202eevil\u202c שלום עולם", "x" * 200, "🦆👩‍🔬 [31mred[0m")

SOURCES = {
    "rn18": {"network": "resnet18", "stem": "cifar"},
    "rn50": {"network": "resnet50", "stem": "cifar"},
    "own-rn50": {"run": "1 rn50 scratch"},
    "imagenet": {"network": "resnet50", "weights": "pretrained"},
}
TARGETS = {
    "cifar10": {"data": "cifar10"},
    "cifar100": {"data": "cifar100"},
    "cifar10-10pct": {"data": "cifar10", "fraction": 0.1},
    "cifar10-50": {"data": "cifar10", "per_class": 50},
}
RECIPES = {"short": {"epochs": 12}, "long": {"epochs": 20}}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cell(**changes: object) -> Cell:
    """A cell as the engine would write it; `changes` replace fields."""
    accuracy = float(changes.get("accuracy", 0.93))  # type: ignore[arg-type]
    classes = int(changes.get("classes", 10))  # type: ignore[call-overload]
    fields: dict[str, object] = {
        "row": "a", "seed": 0, "accuracy": accuracy, "test_images": 10_000, "chance": 1 / classes,
        "validation_accuracy": accuracy + 0.004, "train_accuracy": min(1.0, accuracy + 0.05),
        "source": "rn50", "network": "resnet50", "weights": "random", "cut": "all",
        "method": "finetune", "head": "linear", "target": "cifar10", "data": "cifar10", "budget": "all",
        "train_images": 45_000, "validation_images": 5_000, "classes": classes, "image_size": 32,
        "recipe": "short", "note": "",
        "episodes": None, "episode_deviation": None,
        "original": None, "key": "ab" * 32, "curve": learning_curve(accuracy, classes),
        "class_names": CLASSES,
        "confusion": confusion(accuracy, classes) if math.isfinite(accuracy) else [],
        "cost": {"seconds": 412.5, "device": "NVIDIA H100", "threads": 8, "images": 900_000,
                 "versions": {"torch": "2.14.1", "torchvision": "0.29.1", "regraft": "0.1.0"}},
    }  # fmt: skip
    return Cell(**{**fields, **changes})  # type: ignore[arg-type]


def learning_curve(accuracy: float, classes: int, epochs: int = 12) -> list[dict[str, float]]:
    """Falling loss, rising validation accuracy."""
    rise = [1 - math.exp(-(epoch + 1) / 3) for epoch in range(epochs)]
    return [
        {
            "epoch": epoch + 1,
            "train_loss": math.log(classes) * (1.05 - 0.9 * share),
            "lr": 0.1 * (1 - epoch / epochs),
            "validation_accuracy": accuracy * share,
        }
        for epoch, share in enumerate(rise)
    ]


def confusion(accuracy: float, classes: int, per_class: int = 100) -> list[list[int]]:
    """Counts with the errors spread unevenly, rows summing to `per_class`."""
    right = round(accuracy * per_class)
    matrix = np.zeros((classes, classes), dtype=int)
    for i in range(classes):
        matrix[i, i] = right
        for error in range(per_class - right):
            matrix[i, (i + 1 + error % 3 * 2) % classes] += 1
    return matrix.tolist()


def seven_rows() -> Results:
    """The seven rows of the original study, one of them broken in one seed, one with a missing row."""
    # name, source, cut, method, head, target, original, accuracy of seeds 0, 1, 2 (None: missing), note
    rows = [
        ("1 rn50 scratch", "rn50", None, "finetune", "linear", "cifar10", 0.80, (0.952, 0.949, 0.955),
         "ResNet-50 from scratch on CIFAR-10"),
        ("2 cut frozen", "own-rn50", "layer2.2", "frozen", "linear", "cifar100", 0.40, (0.512, 0.498, 0.507),
         "its first 18 layers, frozen, with a new head on CIFAR-100"),
        ("3 cut fine-tuned", "own-rn50", "layer2.2", "finetune", "linear", "cifar10", 0.80,
         (0.941, 0.944, 0.938), "the same cut network, fine-tuned"),
        ("4 rn18 scratch", "rn18", None, "finetune", "linear", "cifar100", 0.48, (0.781, 0.776, 0.785),
         "ResNet-18 from scratch on CIFAR-100"),
        ("5 rn50, 10 %", "rn50", None, "finetune", "linear", "cifar10-10pct", 0.57, (0.871, 0.102, 0.866),
         "ResNet-50 from scratch on 10 % of CIFAR-10"),
        ("6 ImageNet, 50 per class", "imagenet", None, "frozen", "linear", "cifar10-50", 0.11,
         (0.915, 0.921, 0.909), "the original's 10-12 % was a wrong input path"),
        ("7 rn50, 50 per class", "rn50", None, "finetune", "linear", "cifar10-50", 0.12, (0.58, 0.61, 0.57),
         "from scratch on 50 images per class"),
        ("8 ImageNet, all images", "imagenet", None, "finetune", "linear", "cifar10", None,
         (None, None, None),
         "ImageNet weights, fine-tuned"),
    ]  # fmt: skip
    study = Study(
        study="cifar",
        question="What is transfer learning worth on CIFAR, and does the cut matter?",
        sources=SOURCES, targets=TARGETS, recipes=RECIPES,
        rows=[
            {"name": name, "source": source, "cut": cut, "method": method, "head": head, "target": target,
             "recipe": "short", "note": note, "original": original}
            for name, source, cut, method, head, target, original, _, note in rows
        ],
    )  # fmt: skip
    weights = {"rn18": "random", "rn50": "random", "own-rn50": "1 rn50 scratch", "imagenet": "pretrained"}
    budgets = {"cifar10": 45_000, "cifar100": 45_000, "cifar10-10pct": 4_500, "cifar10-50": 450}
    cells: list[Cell] = []
    missing: list[Missing] = []
    for name, source, cut, method, head, target, original, accuracies, note in rows:
        for seed, accuracy in enumerate(accuracies):
            if accuracy is None:
                missing.append(Missing(name, seed, "no way to get the weights here: host not reachable"))
                continue
            classes = 100 if target == "cifar100" else 10
            flat = [{"epoch": i + 1, "train_loss": 2.304, "validation_accuracy": 0.1} for i in range(12)]
            cells.append(
                cell(
                    row=name, seed=seed, accuracy=accuracy, classes=classes, source=source,
                    network="resnet18" if source == "rn18" else "resnet50", weights=weights[source],
                    cut=cut or "all", method=method, head=head, target=target, data=target.split("-")[0],
                    budget=study.targets[target].budget, train_images=budgets[target], note=note,
                    original=original, key=f"{len(cells):064x}",
                    class_names=CLASSES if classes == 10 else tuple(f"class {i}" for i in range(100)),
                    **({"curve": flat} if accuracy < 0.15 else {}),
                )
            )  # fmt: skip
    return Results(study=study, cells=cells, missing=missing, scores_taken=len(cells))


def grid_of_cuts(seeds: tuple[int, ...] = (0, 1, 2)) -> Results:
    """One source, four cuts, frozen and fine-tuned, three budgets at the last cut."""
    cuts = ("layer1.1", "layer2.1", "layer3.1", "layer4.1")
    budgets = ("cifar10-50", "cifar10-10pct", "cifar10")
    study = Study(
        study="cuts", question="Where to cut?", seeds=seeds, sources={"rn18": SOURCES["rn18"]},
        targets=TARGETS, recipes=RECIPES,
        grid=[
            {"source": "rn18", "cut": list(cuts), "method": ["frozen", "finetune"], "target": "cifar10",
             "recipe": "short"},
            {"source": "rn18", "cut": cuts[-1], "method": "frozen", "target": list(budgets[:2]),
             "recipe": "short"},
        ],
    )  # fmt: skip
    base = {"cifar10-50": 0.42, "cifar10-10pct": 0.61, "cifar10": 0.72}
    images = {"cifar10-50": 450, "cifar10-10pct": 4_500, "cifar10": 45_000}
    cells = [
        cell(
            row=row.name, seed=seed, method=row.method, cut=row.cut, source="rn18", network="resnet18",
            target=row.target, budget=study.targets[row.target].budget, train_images=images[row.target],
            accuracy=base[row.target] + 0.012 * (seed - 1) + 0.04 * cuts.index(row.cut or cuts[-1])
            + (0.08 if row.method == "finetune" else 0.0),
        )
        for row in study.all_rows() for seed in seeds
    ]  # fmt: skip
    return Results(study=study, cells=cells, missing=[], scores_taken=len(cells))


def hostile() -> Results:
    """A finished study in which every free text is hostile."""
    study = Study(
        study="hostile", question=HOSTILE, sources={HOSTILE: {"network": "resnet18"}},
        targets={HOSTILE: {"data": "digits"}}, recipes={HOSTILE: {}},
        rows=[
            {"name": name, "source": HOSTILE, "target": HOSTILE, "recipe": HOSTILE, "note": HOSTILE,
             "original": 0.5}
            for name in ODD_NAMES
        ],
    )  # fmt: skip
    cells = [
        cell(
            row=name, seed=seed, accuracy=0.1 if name == HOSTILE else 0.9 + 0.01 * seed, source=HOSTILE,
            target=HOSTILE, data="digits", recipe=HOSTILE, note=HOSTILE, original=0.5,
            class_names=(*ODD_NAMES, *CLASSES[4:]),
            cost={"seconds": 1.0, "device": f"{HOSTILE}\x1b[31mred\x1b[0m"},
        )
        for name in ODD_NAMES[:-1] for seed in (0, 1)
    ]  # fmt: skip
    missing = [Missing(ODD_NAMES[-1], seed, HOSTILE) for seed in (0, 1)]
    return Results(study=study, cells=cells, missing=missing, scores_taken=len(cells))
