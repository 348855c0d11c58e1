"""The chosen configuration: scored once on the held-back pictures, its learning curve, and the predictor.

Everything was chosen before; nothing is chosen by what is found here. The curve's smaller budgets are scored on the
same held-back pictures, so that its points can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

import numpy as np
import torch

from regraft.errors import Diverged, RegraftError
from regraft.predictor.advise.clock import Clock, OutOfTime
from regraft.predictor.advise.explore import RECIPES, VALIDATION, Choice, Place
from regraft.predictor.advise.stage import Staged
from regraft.predictor.build import predictor_of_run
from regraft.predictor.predict import Predictor
from regraft.spec import Row, Run, Study, Target
from regraft.study.bench import Bench
from regraft.study.features import Column, read_features, store_shard
from regraft.study.fits import FitTask, obtain_fits
from regraft.study.heads import obtain_heads, together
from regraft.study.keys import cacheable
from regraft.study.results import Cell, Results
from regraft.study.run import run_study

CURVE = 0.75  # of the time: the curve must have been scored by then; what it takes is estimated before
STEPS = 3  # of a cell of the curve: heads, the chosen one refitted, its score; each about as long as the heads
SHARES = (0.125, 0.25, 0.5, 0.75)  # of the training labels; the whole is the chosen row itself
FEWEST = 2  # labels of a class at a share
CHOSEN = "chosen"


@dataclass(frozen=True)
class Scored:
    """The engine's results, and what of them is the answer."""

    results: Results
    accuracies: tuple[float, ...]  # of the chosen row, one per seed
    curve: Mapping[float, tuple[float, ...]]  # labels, all told -> accuracy of each seed
    cell: Cell  # of the chosen row, first seed


def final_study(chosen: Choice, frozen: Choice, place: Place, counts: Sequence[int], name: str, *, cells: int) -> Study:
    """One row of the chosen configuration, and its learning curve; of the best frozen one, if fine-tuning was chosen.

    counts: training pictures of each class.  cells: of the curve, as many as there is time for; 0 is no curve."""
    possible = [share for share in SHARES if floor(share * float(np.median(counts))) >= FEWEST]
    # Two seeds at the fewest: the larger shares come first where there is no time for all.
    kept = possible[-(cells // min(2, len(place.seeds))) :] if cells >= min(2, len(place.seeds)) else []
    shares = {f"{100 * share:g} %": share for share in kept}
    repeats = place.seeds[: max(1, cells // max(1, len(kept)))]
    targets = {"all": Target(data=place.data, validation=VALIDATION)}
    targets |= {
        label: Target(data=place.data, fraction=share, validation=VALIDATION) for label, share in shares.items()
    }
    sources = {"chosen": chosen.source, "frozen": frozen.source}
    seeds = place.seeds[: 1 if solved(chosen) else len(chosen.accuracies)]
    rows = [chosen.row.model_copy(update={"name": CHOSEN, "source": "chosen", "target": "all", "seeds": seeds})]
    common = {"source": "frozen", "recipe": _kin(frozen)}
    if chosen is not frozen:
        rows.append(frozen.row.model_copy(update={**common, "name": "frozen", "target": "all", "recipe": _own(frozen),
                                                  "seeds": place.seeds[:1]}))  # fmt: skip
    rows += [
        frozen.row.model_copy(update={**common, "name": label, "target": label, "seeds": repeats}) for label in shares
    ]
    return Study(
        study=name, question="Which network, cut and head suit these pictures?", seeds=place.seeds, sources=sources,
        targets=targets, recipes=RECIPES, rows=[Row(**row.model_dump(exclude_unset=True)) for row in rows],
    )  # fmt: skip


def affordable(seconds_a_cell: float, clock: Clock) -> int:
    """Cells of the curve that there is time for."""
    left = max(0.0, max(clock.left(CURVE), 0.5 * clock.left(1.0)))
    return int(left / (STEPS * max(seconds_a_cell, 1e-3)))


def solved(choice: Choice) -> bool:
    """Whether training has nothing random, so that every seed that learns from all labels gives the same head."""
    return choice.row.method == "frozen" and choice.source.weights != "random"


def _own(choice: Choice) -> tuple[str, ...]:
    return (choice.recipe,) if choice.recipe else ()


def _kin(choice: Choice) -> tuple[str, ...]:
    """The recipes that differ in penalty alone: with fewer labels another one is best."""
    kind = choice.recipe.partition(" ")[0]
    return tuple(name for name in RECIPES if name.startswith(f"{kind} ")) if choice.recipe else ()


def score(study: Study, place: Place, clock: Clock) -> Scored:
    """Run the study: the only step that meets test labels.  Raises RegraftError if the chosen row has no score."""
    clock.says("the held-back pictures")
    results = run_study(study, place.store, device=place.device, offline=place.offline, backend="fused")
    chosen = [cell for cell in results.cells if cell.row == CHOSEN]
    if not chosen:
        raise RegraftError(f"the chosen configuration has no score: {results.missing[0].reason}")
    whole = "frozen" if any(cell.row == "frozen" for cell in results.cells) else CHOSEN
    curve: dict[float, tuple[float, ...]] = {}
    for cell in results.cells:
        if cell.row != CHOSEN or whole == CHOSEN:
            labels = float(cell.train_images)
            curve[labels] = (*curve.get(labels, ()), cell.accuracy)
    return Scored(results, tuple(cell.accuracy for cell in chosen), curve, chosen[0])


# --- the predictor --------------------------------------------------------------------------------------------------


def predictor(scored: Scored, staged: Staged, everything: Staged, place: Place, clock: Clock) -> tuple[Predictor, int]:
    """The chosen configuration trained on all labelled pictures, held-back ones included; and how many these are.

    A fine-tuned network is trained again only if there is time for it; else, or if that fails, it is the one that was
    scored. What the file says of accuracy is what was measured before, with fewer labels."""
    study = scored.results.study
    row, seed = study.row(CHOSEN), scored.cell.seed
    run, bench = _run_of(study, replace(place, data=staged.data), row, seed)
    if everything is not staged:  # else all that may be learned was: the test part is the folder's own
        whole, whole_bench = _run_of(study, replace(place, data=everything.data), row, seed)
        if cacheable(run):
            _carry_over(run, bench, staged, whole, whole_bench, everything)
            for one in (whole.model_copy(update={"refit": False}), whole):
                obtain_heads(together([one])[0], whole_bench, lambda done, said: None, True)
            run, bench = whole, whole_bench
        elif clock.left() > 1.5 * float(scored.cell.cost.get("seconds", np.inf)) and _trained(
            whole, whole_bench, clock
        ):
            run, bench = whole, whole_bench
    parts, _ = bench.training(run)
    learnt = sum(map(len, parts))
    return predictor_of_run(run, replace(scored.cell, train_images=learnt), bench, device=place.device), learnt


def _trained(whole: Run, bench: Bench, clock: Clock) -> bool:
    """Train on all pictures; False if that took too long or diverged."""
    try:
        obtain_fits(FitTask((whole,)), bench, clock.stops(1.0, "training on all pictures"), True)
        bench.keys.fitted(whole)  # raises Diverged
    except (OutOfTime, Diverged):
        return False
    return True


def _run_of(study: Study, place: Place, row: Row, seed: int) -> tuple[Run, Bench]:
    """The final run of a row on the place's data, refitted if its recipe says so."""
    one = Study(
        study=study.study, seeds=(seed,), sources={row.source: study.sources[row.source]},
        targets={"all": Target(data=place.data, validation=VALIDATION)}, recipes=study.recipes,
        rows=[Row(**{**row.model_dump(exclude_unset=True), "seeds": (seed,)})],
    )  # fmt: skip
    runs, bench = place.bench(one)
    return runs[0].model_copy(update={"refit": runs[0].recipe.refit}), bench


def _carry_over(run: Run, bench: Bench, staged: Staged, whole: Run, whole_bench: Bench, everything: Staged) -> None:
    """Features of the same pictures, by the same trunk, under the data set of all pictures: none is computed twice."""
    target = {p.name: i for i, p in enumerate(everything.read("train", whole_bench.dataset(whole).unreadable))}
    unreadable = bench.dataset(run).unreadable
    blocks: dict[str, list[torch.Tensor]] = {}
    positions: list[int] = []
    trunk = backend = ""
    for part in ("train", "test"):
        names = [picture.name for picture in staged.read(part, unreadable)]
        positions += [target[name] for name in names]
        for cut in bench.keys.cuts(run):
            rows, trunk, backend = read_features(run, (part, 0), np.arange(len(names)), bench, cut=cut)
            blocks.setdefault(cut, []).append(rows)
    order = np.argsort(positions)
    for cut, parts in blocks.items():
        rows = torch.cat(parts)[torch.from_numpy(order)].contiguous()
        record = {"backend": backend, "carried_over": True}
        store_shard(Column(whole, cut), ("train", 0), np.array(positions)[order], rows, trunk, record, whole_bench)
