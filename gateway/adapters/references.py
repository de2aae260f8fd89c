"""`env:NAME` and `file:PATH`: values that configuration points at instead of holding them."""

import os
from pathlib import Path


class UnresolvedReference(Exception):
    """What a reference points at is not there. The text says what is missing, `hint` what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def resolve(text: str) -> str:
    """The value behind a reference; any other text is its own value. Raises UnresolvedReference."""
    kind, _, place = text.partition(":")
    if kind == "env":
        if not (value := os.environ.get(place, "").strip()):
            raise UnresolvedReference(f"the environment variable {place} is not set", f"export {place}=…")
        return value
    if kind == "file":
        try:
            return Path(place).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UnresolvedReference(f"{place} cannot be read", "the file must exist and hold text") from error
    return text
