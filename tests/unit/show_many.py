"""Results with many arms, made by hand: what figures must keep apart."""

from __future__ import annotations

from regraft.spec import Study
from regraft.study.results import Cell, Results
from tests.unit.show_example import cell

SOURCES = ("random", "ImageNet", "a network that was trained on pictures of birds", "own")
BUDGETS = (1, 5, 20, 50)
CUTS = ("layer1.1", "layer2.1", "layer3.1", "layer4.1")


def many_arms(seeds: tuple[int, ...] = (0, 1, 2)) -> Results:
    """Four sources, frozen and fine-tuned, with two heads frozen: 12 arms at four budgets and five cuts; 80 rows."""
    study = Study(
        study="many", question="Which of many?", seeds=seeds,
        sources={name: {"network": "resnet18", "weights": "random" if name == "random" else "pretrained"}
                 for name in SOURCES},
        targets={f"{n} per class": {"data": "cifar10", "per_class": n, "validation": 0} for n in BUDGETS},
        recipes={"short": {"epochs": 12}},
        grid=[
            {"source": list(SOURCES), "cut": list(CUTS), "method": "finetune", "recipe": "short",
             "target": "50 per class"},
            {"source": list(SOURCES), "method": "finetune", "recipe": "short",
             "target": [f"{n} per class" for n in BUDGETS]},
            {"source": list(SOURCES), "cut": list(CUTS), "method": "frozen", "recipe": "short",
             "target": "50 per class"},
            {"source": list(SOURCES), "method": "frozen", "recipe": "short",
             "target": [f"{n} per class" for n in BUDGETS]},
            {"source": list(SOURCES), "method": "frozen", "head": "prototype",
             "target": [f"{n} per class" for n in BUDGETS]},
        ],
    )  # fmt: skip
    cells: list[Cell] = []
    for row in study.all_rows():
        n = int(row.target.split()[0])
        rank = SOURCES.index(row.source)
        at = CUTS.index(row.cut) if row.cut else len(CUTS)
        base = (
            (0.18 if row.head.kind == "prototype" else 0.2)
            + 0.1 * BUDGETS.index(n)
            + 0.033 * rank
            + 0.03 * at
            + (0.05 if row.method == "finetune" else 0.0)
        )
        for seed in seeds:
            cells.append(
                cell(
                    row=row.name, seed=seed, source=row.source, cut=row.cut or "penultimate", method=row.method,
                    network="resnet18", weights="random" if row.source == "random" else "pretrained",
                    head=row.head.label, target=row.target, data="cifar10", budget=row.target, train_images=10 * n,
                    validation_images=0, accuracy=min(0.98, base + 0.01 * (seed - 1) * (1 + rank % 3)),
                    depth=(at + 1) / 5, key=f"{len(cells):064x}", curve=[], recipe="short" if row.recipe else "none",
                    cost={"seconds": 0.01 * n * (30 if row.method == "finetune" else 1) * (1 + at), "device": "cpu"},
                )
            )  # fmt: skip
    return Results(study=study, cells=cells, missing=[], scores_taken=len(cells))
