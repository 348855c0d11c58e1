"""How many pictures a minute? `python benchmarks/predict.py PICTURES --record FILE.json`.

PICTURES is a folder of classes. A linear head is trained on 20 pictures of each class, on features of an ImageNet
network; its predictor classifies the other ones (`--count` at most) by `regraft predict --csv`, with the back end that
it chooses itself and with eager PyTorch. The peer is the loop that people write: DataLoader, ImageFolder, torchvision's
transforms, eager mode, with the better of 0 and 2 loader processes. All are processes of their own, timed whole, in
turn, and read the same JPEG files; how often their answers are the same is told (the resizing differs by a little).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from running import PEERS, WORKERS, Timed, record, table, time_process
from safetensors.torch import save_file

from regraft import Predictor, Store, Study, predictor_of, run_study
from regraft.networks import obtain_weights
from regraft.seeding import stream
from regraft.spec import Source

# Those that package registries carry, so that the benchmark runs where they are all there is.
NETWORKS = {"resnet50_v1": "pretrained", "mobilenet_v2": "pretrained:IMAGENET1K_V1"}
PER_CLASS, IMAGE_SIZE = 20, 224
HEAD = "head"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="a folder of classes")
    parser.add_argument("--count", type=int, default=1000, help="pictures to classify, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads of every contender; default: the physical cores")
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--record", type=Path, help="write everything to this JSON file")
    options = parser.parse_args()
    rows: list[Timed] = []
    agreements: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as temporary:
        place = Path(temporary)
        count = write_parts(options.pictures, place, options.count)
        for network in options.network or NETWORKS:
            of_network, same = measure(network, place, options.rounds, options.threads)
            plain = next(row.median for row in of_network if row.name.endswith("plain loop"))
            print(table(f"{network}, {count:,} pictures at {IMAGE_SIZE} pixels", of_network, plain))
            for row in of_network:
                if row.median:
                    row.said["pictures_a_minute"] = round(60 * count / row.median)
                    print(f"{row.name}: {row.said['pictures_a_minute']:,} pictures a minute")
            print(f"same answer as the plain loop: {100 * same:.2f} %")
            rows += of_network
            agreements[network] = same
    if options.record:
        record(options.record, rows, sys.executable, pictures=count, same_answer=agreements)


def write_parts(pictures: Path, place: Path, most: int) -> int:
    """known/CLASS, PER_CLASS pictures each, and asked/CLASS, up to `most` of the others, as links. Returns how many."""
    asked = []
    for folder in sorted(one for one in pictures.iterdir() if one.is_dir() and one.name[0] != "."):
        files = sorted(file.resolve() for file in folder.iterdir() if file.is_file())
        order = stream(0, "benchmark-draw").permutation(len(files))
        for i in order[:PER_CLASS]:
            link(files[i], place / "known" / folder.name)
        asked += [(folder.name, files[i]) for i in order[PER_CLASS:]]
    order = stream(1, "benchmark-draw").permutation(len(asked))[:most]
    for i in order:
        link(asked[i][1], place / "asked" / asked[i][0])
    return len(order)


def link(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.symlink(file, folder / file.name)


def measure(network: str, place: Path, rounds: int, threads: int | None) -> tuple[list[Timed], float]:
    """The contenders in turn, and the share of pictures that regraft and the plain loop answer alike."""
    predictor = trained(network, place)
    file = predictor.save(place / f"{network}.regraft")
    task = place / network
    write_task(predictor, network, task)
    few = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    own = [sys.executable, "-m", "regraft", "predict", str(file), str(place / "asked"), "--csv"]
    own += [] if threads is None else ["--threads", str(threads)]
    peer = [sys.executable, str(PEERS / "plain_predict.py"), str(task), str(place / "asked")]
    chosen, eager = Timed(f"{network}: regraft predict"), Timed(f"{network}: regraft predict, eager")
    plain = Timed(f"{network}: plain loop")
    tries = {n: time_process([*peer, "--workers", str(n)], env=few)[0] for n in WORKERS}
    workers = min(tries, key=tries.__getitem__)
    plain.note = f"{workers} loader processes"
    answers = ""
    for _ in range(rounds):
        for timed, command in ((chosen, own), (eager, [*own, "--backend", "eager"])):
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **few})
            timed.seconds.append(time.perf_counter() - began)
            if timed is chosen:
                answers = done.stdout
        seconds, said = time_process([*peer, "--workers", str(workers)], env=few)
        plain.seconds.append(seconds)
        plain.accuracy = float(str(said["accuracy"]))
    mine = {Path(row["file"]).name: (row["class"], row["true"]) for row in csv.DictReader(io.StringIO(answers))}
    chosen.accuracy = sum(said == true for said, true in mine.values()) / len(mine)
    with (task / "predictions.csv").open(newline="") as lines:
        theirs = {Path(path).name: answer for path, answer in csv.reader(lines)}
    return [chosen, eager, plain], sum(mine[name][0] == answer for name, answer in theirs.items()) / len(theirs)


def trained(network: str, place: Path) -> Predictor:
    """A linear head on the features of the whole network."""
    study = Study(
        study="predict", seeds=[0],
        sources={"ImageNet": {"network": network, "weights": NETWORKS[network], "image_size": IMAGE_SIZE}},
        targets={"pictures": {"data": f"folder:{place / 'known'}"}},
        recipes={HEAD: {"optimizer": "ridge", "weight_decay": 1.0}},
        rows=[{"name": HEAD, "source": "ImageNet", "method": "frozen", "target": "pictures", "recipe": HEAD}],
    )  # fmt: skip
    store = Store(place / f"store-{network}")
    results = run_study(study, store)
    return predictor_of(results, store, row=HEAD)


def write_task(predictor: Predictor, network: str, folder: Path) -> None:
    """What the plain loop needs: the network's weights as torchvision names them, the head's, the normalisation."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_file(obtain_weights(Source(network=network, weights=NETWORKS[network])).state(), folder / "trunk.safetensors")
    head = {name.rpartition(".")[2]: value.clone() for name, value in predictor.network.classify.state_dict().items()}
    save_file(head, folder / "head.safetensors")
    expected = predictor.manifest.preprocessing
    words = {
        "network": network, "mean": expected.mean, "std": expected.std, "image_size": IMAGE_SIZE,
        "classes": predictor.classes,
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(words))


if __name__ == "__main__":
    main()
