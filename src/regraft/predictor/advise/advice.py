"""What `advise` gives back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from regraft.analysis.extrapolate import Extrapolation
from regraft.analysis.findings import Candidate, Doubted, Findings, NextLabels
from regraft.predictor.predict import Predictor
from regraft.study.results import Results


@dataclass(frozen=True, eq=False, kw_only=True)
class Advice(Findings):
    """Everything that was found out about a folder of pictures, and a predictor for more of them."""

    results: Results  # of the engine: the chosen configuration and its learning curve
    predictor: Predictor

    @property
    def accuracy(self) -> float:
        """Expected accuracy on new pictures of this kind, a fraction."""
        return self.expected.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval; `expected.how()` says what it rests on."""
        return self.expected.low, self.expected.high

    @property
    def best(self) -> Candidate:
        """The configuration that was chosen on validation pictures."""
        return self.chosen

    @property
    def curve(self) -> Extrapolation:
        """Accuracy against labels, measured, and carried on to 2 and 4 times the labels."""
        return self.extrapolation

    @property
    def mislabelled(self) -> tuple[Doubted, ...]:
        """Training pictures whose label is probably wrong, the surest first."""
        return self.doubted

    @property
    def next_labels(self) -> NextLabels:
        """What to label next."""
        return self.next

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without pictures and network."""
        left_out = ("results", "predictor", "thumbnails")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return {name: _plain(value) for name, value in plain.items()}

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    def write_page(self, path: str | Path, *, command: str = "") -> Path:
        """Write everything as a page that needs no network; returns the path."""
        from regraft.show.advice import write_advice

        return write_advice(self, path, command=command)

    def _repr_html_(self) -> str:
        from regraft.show.advice import short_html

        return short_html(self)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
