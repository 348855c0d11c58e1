"""Mutants that no test can notice, each with the reason: {module: {mutant: why}}."""

from __future__ import annotations

DEFAULT = "it is the default of json.dumps, written out because keys depend on it"
ASKED_BEFORE = "`facts` of the same source comes first, and has fetched the weights or refused to"

PLAIN = "numbers and words are written alike in both modes"
SHORTCUT = "a shortcut: the longer way finds the same"
REMEMBERED = "what is remembered is worked out again: the same, later"
FLAG = "the flag `training` is no parameter, and is not counted further down"
ROUNDING = "on which side the limit of rounding itself falls is of no consequence"
ALIKE = "all blocks have the same convolutions"
NEVER_EMPTY = "np.split gives at least one part, so there is no empty list of parts"
INTERVAL = "self.low is not None and self.high is not None"
BOTH = "an interval has both ends or none"

EQUIVALENT: dict[str, dict[str, str]] = {
    "analysis/stats.py": {
        f"Summary.text: {INTERVAL} -> self.low is not None or self.high is not None": BOTH,
        f"Summary.text: {INTERVAL} -> self.high is not None": BOTH,
        f"Summary.text: {INTERVAL} -> self.low is not None": BOTH,
        "paired_difference: error > 1e-12 -> error >= 1e-12": ROUNDING,
        "paired_difference: abs(mean) > 1e-12 -> abs(mean) >= 1e-12": ROUNDING,
        "holm: 0.0 -> 1.0": "every entry of the list is written over",
    },
    "networks/cuts.py": {
        "_advice: size > wanted -> size >= wanted": "the wanted size does not fit, so it is never found",
        "_described.points: build(network, stem=stem, seed=0, image_size=side) -> "
        "build(network, seed=0, image_size=side)": "only ResNets have another stem, and those need no real tensors",
        "_described.points: 0 -> 1": "the seed changes no shape",
        "_kept: if not value.users: -> if False:": "a copy more",
        "_is_resnet50: 0 -> 1 (3)": ALIKE,
        "_is_resnet50: 0 -> 1 (4)": ALIKE,
        "_is_resnet50: return False -> return None": "it is only asked whether it is true",
        "_is_resnet50:  for stage in stages if isinstance(stage, nn.Sequential) -> "
        " for stage in stages": "all of them are, as was asked before",
        "_is_resnet50: all((isinstance(stage, nn.Sequential) for stage in stages)) -> "
        "any((isinstance(stage, nn.Sequential) for stage in stages))": "four counts of blocks need four such stages",
        "resolve_cut: if (at or PENULTIMATE) in points: -> if False:": SHORTCUT,
        "resolve_cut: at or PENULTIMATE -> at": SHORTCUT,
        "resolve_cut: at or PENULTIMATE -> at (3)": "without a name the first answer is found: here there is one",
        "resolve_cut: build_skeleton(network, stem=stem, image_size=image_size) -> "
        "build_skeleton(network, stem=stem)": "the size of the images changes no name",
        "_parameters: node.op == 'get_attr' and node.target != 'training' -> node.op == 'get_attr'": FLAG,
        "_parameters: 'training' -> 'trainingX'": FLAG,
        "describe: 'points' -> 'pointsX'": "the name under which an answer is kept: it is only asked for again",
    },
    "data/subsets.py": {
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
        "Keys.chosen: if cell in self._chosen: -> if False:": REMEMBERED,
        "_read_fields: part.model_dump(mode='json', include=set(names) - unused) -> "
        "part.model_dump(include=set(names) - unused)": PLAIN,
        "_read_fields: 'json' -> 'jsonX'": PLAIN,
        "Keys.fit_key: if run not in self._fit_keys: -> if True:": REMEMBERED,
        "Keys.fit: target.episodes.model_dump(mode='json') -> target.episodes.model_dump()": PLAIN,
        "Keys.fit: 'json' -> 'jsonX' (2)": PLAIN,
        "Keys.weights: obtain_weights(source, offline=self.offline) -> obtain_weights(source)": ASKED_BEFORE,
    },
}
