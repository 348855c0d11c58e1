"""One frozen-trunk job against the loops that people write: `python benchmarks/frozen_job.py`.

An ImageNet ResNet-50 cut after layer2.2 (its first 18 layers, counted as the original study did), frozen; CIFAR-10,
10,000 training and 2,000 test images at 32 pixels; a linear head trained for 10 epochs of SGD (batch 128, momentum 0.9,
cosine). Contenders: regraft from Python and from the command line (with its report), each into an empty store; a plain
PyTorch loop; Lightning; fastai. Every contender is a process of its own, timed as a whole: imports, reading data and
weights, training, testing. All see the same images and weights. The peers' trunks are frozen and stay in eval mode;
they test after every epoch, as is usual.

Data and weights are fetched and written for the peers before any timing. Lightning and fastai go into a temporary
environment of their own. Seconds mean something only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from running import (
    IMAGE_SIZE,
    NETWORK,
    PEERS,
    SCRIPTS,
    TEST_IMAGES,
    Timed,
    environment,
    record,
    table,
    time_peer,
    time_process,
    write_peer_files,
)

from regraft import Study

CUT, EPOCHS, PER_CLASS, LR, SEED = "layer2.2", 10, 1000, 0.1, 0


def job(*, per_class: int, test_images: int, epochs: int) -> Study:
    """The job as a study of one row and one seed."""
    return Study(
        study="frozen-job",
        seeds=[SEED],
        sources={"ImageNet": {"network": NETWORK, "weights": "pretrained", "image_size": IMAGE_SIZE}},
        targets={
            "CIFAR-10": {"data": "cifar10", "per_class": per_class, "validation": 0.0, "test_images": test_images}
        },
        recipes={"head": {"optimizer": "sgd", "epochs": epochs, "batch_size": 128, "lr": LR}},
        rows=[
            {
                "name": "first 18 layers, frozen", "source": "ImageNet", "cut": CUT, "method": "frozen",
                "target": "CIFAR-10", "recipe": "head",
            }
        ],
    )  # fmt: skip


def time_regraft(study: Path, place: Path, rounds: int) -> list[Timed]:
    """regraft from Python, from the command line, and once more on a finished study."""
    library, command, again = Timed("regraft, Python"), Timed("regraft run, with report"), Timed("the same, run again")
    for number in range(rounds):
        store, other = place / f"store-{number}", place / f"store-cli-{number}"
        seconds, said = time_process([sys.executable, str(PEERS / "regraft_study.py"), str(study), str(store)])
        library.seconds.append(seconds)
        library.accuracy = float(str(said["accuracy"]))
        run = [
            sys.executable,
            "-m",
            "regraft.cli",
            "run",
            str(study),
            "--store",
            str(other),
            "--out",
            str(place / "out"),
        ]
        command.seconds.append(time_process(run)[0])
        again.seconds.append(time_process(run)[0])
        print(
            f"regraft: {seconds:.1f} s, command line {command.seconds[-1]:.1f} s, test {100 * library.accuracy:.1f} %"
        )
    return [library, command, again]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of regraft")
    parser.add_argument("--peer-rounds", type=int, default=1, help="of each peer")
    parser.add_argument("--peers", default="plain,lightning,fastai", help="which, separated by commas")
    parser.add_argument("--environment", type=Path, help="keep the peers' environment in this folder, or use it again")
    parser.add_argument("--record", type=Path, help="write everything to this JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; the times say nothing")
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name]
    if unknown := set(peers) - set(SCRIPTS):
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    sizes = {"per_class": 20, "test_images": 100} if options.smoke else {
        "per_class": PER_CLASS, "test_images": TEST_IMAGES
    }  # fmt: skip
    epochs = 2 if options.smoke else EPOCHS
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as temporary:
        place = Path(temporary)
        write_peer_files(place / "peer", seed=SEED, cut=CUT, epochs=epochs, lr=LR, **sizes)
        study = place / "frozen-job.yaml"
        study.write_text(job(epochs=epochs, **sizes).to_yaml())
        python, refused = environment(options.environment or place / "environment", peers)
        rows = time_regraft(study, place, options.rounds)
        for peer in peers:
            if peer in refused:
                rows.append(Timed(peer, note=f"could not be installed: {refused[peer]}"))
            else:
                rows.append(time_peer(peer, python, place / "peer", options.peer_rounds))
        plain = next((row.median for row in rows if row.name == "plain"), None)
        title = (
            f"{NETWORK} cut at {CUT}, {10 * sizes['per_class']:,} + {sizes['test_images']:,} images, {epochs} epochs"
        )
        print(table(title, rows, plain))
        if options.record:
            record(options.record, rows, python, job=title, smoke=options.smoke)


if __name__ == "__main__":
    main()
