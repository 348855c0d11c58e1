"""The ground of every part of a study."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Immutable; unknown fields are refused, so a typo never trains with a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
