"""The ground of every part of a study."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Model(BaseModel):
    """Immutable; unknown fields are refused, so a typo never trains with a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: object, info: ValidationInfo) -> object:
        """pydantic would take `yes` for the number 1, and the bytes of a `!!binary` for text that nobody looked at."""
        if isinstance(value, bytes | bytearray):
            raise ValueError("bytes (a `!!binary`) are no text; write the text itself")
        if isinstance(value, bool):
            return as_number(value) if cls.model_fields[str(info.field_name)].annotation is not bool else value
        return value


def as_number(value: object) -> object:
    """Anything but yes and no passes, for the field's own type to refuse."""
    if isinstance(value, bool):
        raise ValueError(f"yes, no, true, false, on and off are not taken here, got {value}; in YAML, quote a word")
    return value
