"""Mutants that no test can notice, each with the reason: {module: {mutant: why}}."""

from __future__ import annotations

DEFAULT = "it is the default of json.dumps, written out because keys depend on it"
ASKED_BEFORE = "`facts` of the same source comes first, and has fetched the weights or refused to"

WHOLE_NUMBERS = "whole numbers are written alike in both modes"
SHORTCUT = "a shortcut: the longer way finds the same"
REMEMBERED = "what is remembered is worked out again: the same, later"
NEVER_EMPTY = "np.split gives at least one part, so there is no empty list of parts"
INTERVAL = "self.low is not None and self.high is not None"
BOTH = "an interval has both ends or none"

EQUIVALENT: dict[str, dict[str, str]] = {
    "analysis/stats.py": {
        f"Summary.text: {INTERVAL} -> self.low is not None or self.high is not None": BOTH,
        f"Summary.text: {INTERVAL} -> self.high is not None": BOTH,
        f"Summary.text: {INTERVAL} -> self.low is not None": BOTH,
        "holm: 0.0 -> 1.0": "every entry of the list is written over",
    },
    "networks/cuts.py": {
        "resolve_cut: if (at or PENULTIMATE) in points: -> if False:": SHORTCUT,
        "resolve_cut: at or PENULTIMATE -> at": SHORTCUT,
        "describe: 'points' -> 'pointsX'": "the name under which an answer is kept: it is only asked for again",
    },
    "data/subsets.py": {
        "_class_budgets: 0 -> 1 (2)": "differs only for no labels and no names of classes; there is no such caller",
        "_sorted: np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64) -> np.sort(np.concatenate(parts)) "
        "if True else np.empty(0, np.int64)": NEVER_EMPTY,
        "_sorted: 0 -> 1": NEVER_EMPTY,
        "_class_budgets: 'stable' -> 'stableX'": "numpy reads the first letter",
    },
    "study/disk.py": {
        "canonical: json.dumps(spec, sort_keys=True, separators=(',', ':'), ensure_ascii=True, allow_nan=False) -> "
        "json.dumps(spec, sort_keys=True, separators=(',', ':'), allow_nan=False)": DEFAULT,
    },
    "study/keys.py": {
        "Keys.chosen: '' -> 'X'": "written over before it is told: where nothing is chosen, something diverged",
        "Keys.fit_key: if run not in self._fit_keys: -> if True:": REMEMBERED,
        "Keys.fit: target.episodes.model_dump(mode='json') -> target.episodes.model_dump()": WHOLE_NUMBERS,
        "Keys.fit: 'json' -> 'jsonX' (2)": WHOLE_NUMBERS,
        "Keys.weights: obtain_weights(source, offline=self.offline) -> obtain_weights(source)": ASKED_BEFORE,
    },
}
