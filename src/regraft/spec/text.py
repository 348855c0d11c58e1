"""Names and sentences in a study: what can be printed in a table, written to a file and read back."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import BeforeValidator

from regraft.errors import shown as shown

# Unicode categories: Cc control characters (newline, escape), Zl and Zp line ends, Cs halves of surrogate
# pairs, which no file in UTF-8 can hold.
NOT_IN_NAMES = ("Cc", "Cs", "Zl", "Zp")
LONGEST_NAME = 4096  # characters; as long as a path can be
LONGEST_TEXT = 100_000


def check_name(value: object) -> object:
    """Anything but text passes, for the field's own type to refuse."""
    if isinstance(value, bytes | bytearray):
        raise ValueError("bytes (a `!!binary`) are no text; write the text itself")
    if isinstance(value, str):
        _refuse(value, "", LONGEST_NAME)
        if value and not value.strip():
            raise ValueError(f"blank: {shown(value)}; a name needs a character that can be seen")
    return value


def check_text(value: object) -> object:
    if isinstance(value, str):
        _refuse(value, "\n\t", LONGEST_TEXT)
    return value


def class_name(value: object) -> object:
    """YAML reads an unquoted 3 as a number: the class "3" is meant. What else it reads as no text was written otherwise
    (no, 1.50, 2024-01-01), so it must be quoted."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"a class name is text, got {shown(value)}; in YAML, put it in quotes")
    return check_name(value)


def _refuse(text: str, allowed: str, longest: int) -> None:
    if len(text) > longest:
        raise ValueError(f"longer than {longest:,} characters: {shown(text)}")
    for character in text:
        if unicodedata.category(character) in NOT_IN_NAMES and character not in allowed:
            raise ValueError(f"has the character {character!r}, which cannot be printed: {shown(text)}; remove it")


Name = Annotated[str, BeforeValidator(check_name)]  # one line that can be seen
Text = Annotated[str, BeforeValidator(check_text)]  # sentences; may have several lines
ClassName = Annotated[str, BeforeValidator(class_name)]
