"""Does advice keep its word? `python benchmarks/advise.py PICTURES --record FILE.json`.

PICTURES is a folder of classes with many pictures. Again and again some of each class are drawn, advice is asked on
them alone, and its predictor answers pictures that it has never seen. Recorded for each draw: the seconds taken of the
budget, the accuracy that was promised with its interval, the accuracy that came, and with `--flip` how many of the
labels that were changed on purpose were found. Draws are nested: where twice or four times a size is in `--per-class`
too, what was forecast of it is compared with what came there. `--cifar10 N` writes N pictures of each of CIFAR-10's
classes as PNG first, and takes those.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from running import circumstances, command_line

from regraft.analysis.stats import wilson_interval
from regraft.data import load_dataset
from regraft.predictor.advise import Advice, advise
from regraft.seeding import stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="?", help="a folder of classes")
    parser.add_argument("--cifar10", type=int, metavar="N", help="instead: N training pictures of each class")
    parser.add_argument("--per-class", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--draws", type=int, default=5, help="of each size")
    parser.add_argument("--first-draw", type=int, default=0, metavar="N", help="their numbers begin here")
    parser.add_argument("--rest", type=int, default=300, help="unseen pictures of each class, at most")
    parser.add_argument("--flip", type=float, default=0.0, help="share of labels changed on purpose")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--network", action="append", default=[])
    parser.add_argument("--store", type=Path, help="default: an empty one for each draw, so that all is computed")
    parser.add_argument("--online", action="store_true", help="fetch weights that are not here")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--more", action="store_true", help="keep the draws that the record has, and add to them")
    options = parser.parse_args()
    before = json.loads(options.record.read_text("utf-8")) if options.more else {}
    found, commands = before.get("draws", []), [*before.get("commands", []), command_line()]
    with tempfile.TemporaryDirectory() as place:
        pictures = write_cifar(Path(place) / "cifar10", options.cifar10) if options.cifar10 else options.pictures
        if pictures is None:
            parser.error("name a folder of classes, or --cifar10 N")
        for per_class in options.per_class:
            for draw in range(options.first_draw, options.first_draw + options.draws):
                one = measure(pictures, per_class, draw, Path(place) / f"{per_class}-{draw}", options)
                found.append(one)
                print(json.dumps({k: v for k, v in one.items() if k != "notes"}), file=sys.stderr, flush=True)
                if options.record:
                    written = {
                        "pictures": "cifar10" if options.cifar10 else pictures.name, "draws": found,
                        "summary": summary(found), "commands": commands, **circumstances(sys.executable),
                    }  # fmt: skip
                    options.record.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    print(json.dumps(summary(found), indent=1))


def measure(pictures: Path, per_class: int, draw: int, place: Path, options: argparse.Namespace) -> dict[str, object]:
    """Advice on one draw, and what became of it."""
    rest, changed = write_draw(pictures, per_class, draw, place / "given", options.rest, options.flip)
    began = time.perf_counter()
    advice = advise(
        place / "given", minutes=options.minutes, out=place / "out", networks=options.network,
        store=options.store or place / "store", offline=not options.online,
        tell=lambda what, share: print(f"{100 * share:3.0f} % of the time: {what}", file=sys.stderr, flush=True),
    )  # fmt: skip
    advice.write_page(place / "out" / "advice.html")
    seconds = time.perf_counter() - began
    answers = advice.predictor.predict([file for file, _ in rest])
    right = sum(given == name for given, (_, name) in zip(answers.labels, rest, strict=True))
    low, high = advice.interval
    accuracy = right / len(rest)
    return {
        "per_class": per_class, "draw": draw, "minutes": options.minutes, "seconds": round(seconds, 1),
        "in_110_percent_of_time": seconds <= 66 * options.minutes, "chosen": advice.best.what,
        "promised": advice.accuracy, "low": low, "high": high, "test_images": advice.expected.test_images,
        "came": accuracy, "unseen": len(rest), "came_interval": wilson_interval(right, len(rest)),
        "inside": low <= accuracy <= high, "answered_out_of_fold": advice.answered,
        "forecast": [[f.factor, f.accuracy, f.low, f.high] for f in advice.curve.forecasts] or advice.curve.reason,
        "labels_changed": doubts(advice, changed), "wrong_labels_estimated": advice.wrong_labels,
        "notes": list(advice.notes),
    }  # fmt: skip


def write_draw(
    pictures: Path, per_class: int, draw: int, place: Path, most: int, flip: float
) -> tuple[list[tuple[Path, str]], set[str]]:
    """Copy a draw of pictures to `place`.  Returns the unseen ones with their class, and names with a changed label."""
    rng = stream(draw, "benchmark-draw")
    classes = sorted(folder.name for folder in pictures.iterdir() if folder.is_dir() and folder.name[0] != ".")
    rest, given = [], []
    for name in classes:
        files = sorted(file for file in (pictures / name).iterdir() if file.is_file())
        order = rng.permutation(len(files))
        given += [(files[i], name) for i in order[:per_class]]
        rest += [(files[i], name) for i in order[per_class : per_class + most]]
    wrong = rng.choice(len(given), round(flip * len(given)), replace=False)
    changed = set()
    for i, (file, name) in enumerate(given):
        label = name
        if i in wrong:
            label = str(rng.choice([other for other in classes if other != name]))
            changed.add(f"{label}/{name}-{file.name}")
        (place / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / label / f"{name}-{file.name}")
    return rest, changed


def doubts(advice: Advice, changed: set[str]) -> dict[str, object] | None:
    """How many of the changed labels that could be found, those of training pictures, were."""
    if not changed:
        return None
    held_back = advice.pictures.test / sum(advice.pictures.counts)
    listed = [one.file for one in advice.mislabelled]
    k = round(len(changed) * (1 - held_back))
    told = advice.self_test
    return {
        "changed": len(changed), "among_training_about": k, "doubted": len(listed),
        "found": sum(name in changed for name in listed),
        "found_among_first": sum(name in changed for name in listed[:k]), "first": k,
        "self_test_recall": None if told is None else told.recall,
        "self_test_precision": None if told is None else told.precision,
    }  # fmt: skip


def summary(found: list[dict[str, object]]) -> dict[str, object]:
    """How often the promise was kept. Labels changed on purpose are in the held-back pictures as well, so that accuracy
    there is not accuracy on right labels: such draws say nothing of intervals, and are not counted for them."""
    honest = [one for one in found if one["labels_changed"] is None]
    inside = sum(bool(one["inside"]) for one in honest)
    forecasts = checked_forecasts(honest)
    kept = sum(low <= came <= high for _, _, low, high, came in forecasts)
    return {
        "forecasts": [dict(zip(("per_class", "factor", "low", "high", "came"), one, strict=True)) for one in forecasts],
        "forecasts_inside": kept, "forecasts_checked": len(forecasts),
        "forecasts_wilson": wilson_interval(kept, len(forecasts)) if forecasts else None,
        "draws": len(found), "in_110_percent_of_time": sum(bool(one["in_110_percent_of_time"]) for one in found),
        "draws_with_right_labels": len(honest), "inside_interval": inside,
        "inside_wilson": wilson_interval(inside, len(honest)) if honest else None,
    }  # fmt: skip


def checked_forecasts(found: list[dict[str, object]]) -> list[tuple[int, float, float, float, float]]:
    """(pictures of each class, times as many, low, high, what came) where the same draw was measured at that size."""
    came = {(one["draw"], one["per_class"]): one["came"] for one in found}
    checked = []
    for one in found:
        told = one["forecast"]
        for factor, _, low, high in told if isinstance(told, list) else []:
            there = came.get((one["draw"], round(factor * int(str(one["per_class"])))))
            if there is not None:
                checked.append((int(str(one["per_class"])), factor, low, high, float(str(there))))
    return checked


def write_cifar(place: Path, per_class: int) -> Path:
    """PNGs of CIFAR-10's training images, a folder for each class."""
    data = load_dataset("cifar10")
    for label, name in enumerate(data.classes):
        (place / name).mkdir(parents=True)
        for i in np.flatnonzero(data.train.labels == label)[:per_class]:
            Image.fromarray(np.asarray(data.train.images[i])).save(place / name / f"{i}.png")
    return place


if __name__ == "__main__":
    main()
