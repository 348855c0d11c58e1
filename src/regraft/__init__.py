"""regraft: what is transfer learning worth here?

Cut a trained network, graft a new head on it, train it frozen or fine-tuned, compare with scratch.
Five lines do a whole study:

    import regraft
    study = regraft.Study.from_yaml("quickstart")
    results = regraft.run_study(study)
    regraft.write_report(results, "report.html")
    results.to_csv("results.csv")

The names below are imported when first used, so that `import regraft` and `regraft --help` need no torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regraft.networks import cut, cut_points
    from regraft.predictor import Predictor, predictor_of
    from regraft.predictor.advise import Advice, advise
    from regraft.predictor.classifier import RegraftClassifier
    from regraft.show.notebook import figure
    from regraft.show.report import write_report
    from regraft.spec import Study
    from regraft.study.results import Results
    from regraft.study.run import run_study
    from regraft.study.store import Store

    __version__: str

# torch's threads (GNU OpenMP) wait for each other by spinning. On a machine that does something else as well, one of
# two is soon waiting for a thread that has no core: training was measured up to 40 times slower. A short spin costs
# up to about a tenth on a quiet machine (LOG.md). It must be set before torch is loaded; the user's own setting stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = [
    "Advice",
    "Predictor",
    "RegraftClassifier",
    "Results",
    "Store",
    "Study",
    "__version__",
    "advise",
    "cut",
    "cut_points",
    "figure",
    "predictor_of",
    "run_study",
    "write_report",
]

_HOME = {
    "Advice": "regraft.predictor.advise",
    "Predictor": "regraft.predictor",
    "RegraftClassifier": "regraft.predictor.classifier",
    "Results": "regraft.study.results",
    "Store": "regraft.study.store",
    "Study": "regraft.spec",
    "advise": "regraft.predictor.advise",
    "cut": "regraft.networks",
    "cut_points": "regraft.networks",
    "figure": "regraft.show.notebook",
    "predictor_of": "regraft.predictor",
    "run_study": "regraft.study.run",
    "write_report": "regraft.show.report",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("regraft")
    if name not in _HOME:
        raise AttributeError(f"module 'regraft' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
