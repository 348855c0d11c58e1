"""The method: what of a grafted network learns, and how far it may go from where it started."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regraft.spec.base import Model
from regraft.spec.text import Name

Method = Literal[
    "frozen", "finetune", "gradual", "layerwise", "l2-sp", "norms-only", "surgical", "first-frozen", "wise-ft", "lora"
]
Norms = Literal["source", "target", "affine", "all"]


class Tuning(Model):
    """Details of a method."""

    norms: Norms | None = Field(
        default=None,
        description="of the trunk's BatchNorms: source: statistics and affine parameters stay; target: statistics "
        "follow the new images, affine parameters stay; affine: statistics stay, affine parameters learn; all: both "
        "change. Default: source for frozen, target for lora, all for the others",
    )
    decay: float = Field(
        default=0.75, gt=0, le=1, description="of layerwise: learning rate of a block, as a share of the block above it"
    )
    pull: float = Field(
        default=0.01, ge=0, le=1000, description="of l2-sp: strength of the pull towards the weights at the start"
    )
    block: Name | None = Field(default=None, description="of surgical: the only block of the trunk that learns")
    first: Name | None = Field(default=None, description="of first-frozen: the last block that does not learn")
    rank: int = Field(default=8, ge=1, le=4096, description="of lora: rank of the change of each kernel")


OWNERS = {"decay": "layerwise", "pull": "l2-sp", "block": "surgical", "first": "first-frozen", "rank": "lora"}
USUAL = Tuning()


def check_tuning(method: Method, tuning: Tuning) -> None:
    """Raises ValueError for details that belong to another method, or that the method lacks."""
    for name in sorted(tuning.model_fields_set & OWNERS.keys()):
        if OWNERS[name] != method and getattr(tuning, name) != Tuning.model_fields[name].default:
            raise ValueError(f"`tuning.{name}` belongs to method {OWNERS[name]}, not to {method}; remove it")
    for name in ("block", "first"):
        if OWNERS[name] == method and getattr(tuning, name) is None:
            raise ValueError(
                f"method {method} needs `tuning.{name}`: the name of a block, as `regraft cuts` lists them"
            )
    if method == "frozen" and tuning.norms in ("affine", "all"):
        raise ValueError(
            f"`tuning.norms: {tuning.norms}` lets the trunk learn, and method frozen does not; use method norms-only"
        )
    if method == "norms-only" and tuning.norms in ("source", "target"):
        raise ValueError(
            f"`tuning.norms: {tuning.norms}` leaves method norms-only nothing of the trunk to train; use method frozen"
        )


def tuning_of(method: Method, tuning: Tuning) -> Tuning:
    """Of the details, those of `method`: a grid gives the same to many."""
    others = {name for name, owner in OWNERS.items() if owner != method}
    return Tuning(**tuning.model_dump(exclude_unset=True, exclude=others))


def norms_of(method: Method, tuning: Tuning) -> Norms:
    """What becomes of the trunk's BatchNorms."""
    usual: dict[Method, Norms] = {"frozen": "source", "lora": "target"}
    return tuning.norms or usual.get(method, "all")


def told(method: Method, tuning: Tuning) -> str:
    """For tables: 'l2-sp pull=0.1', 'frozen norms=target'; the method alone where all else is usual."""
    words = [f"{name}={getattr(tuning, name)}" for name in sorted(tuning.model_fields_set)]
    usual = {f"{name}={getattr(USUAL, name)}" for name in Tuning.model_fields} | {f"norms={norms_of(method, USUAL)}"}
    return " ".join([method, *(word for word in words if word not in usual)])
