"""Problems in what people wrote: all of them at once, each with place, message and hint."""

import difflib
from collections.abc import Iterable, Sequence

from msgspec import Struct


class Problem(Struct, frozen=True, order=True):
    """One mistake. `path` is the place inside the file, such as `stage[1].accept_below`; empty for the whole file."""

    file: str
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}: {self.path}" if self.path else self.file
        return f"{place}: {self.message}" + (f"\n    hint: {self.hint}" if self.hint else "")


class Unusable(Exception):
    """What a person gave or has cannot be used. The text is all that they need; no traceback is shown for it."""


class InvalidConfig(Unusable):
    """The configuration cannot be used; `problems` is the full list, sorted by place, each once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "did you mean `x`?", the list of what is known where nothing is near, or "" where nothing is known."""
    names = sorted(known)
    if near := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f"did you mean `{near[0]}`?"
    return f"known: {', '.join(f'`{name}`' for name in names)}" if names else ""
