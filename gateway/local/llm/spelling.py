"""Token ids to text, one token at a time, where a character may take several tokens."""

from collections.abc import Callable, Sequence

# Some tokenisers drop a leading space at the start of a text: decoding behind a little context keeps it.
_CONTEXT = 5
_PARTIAL = "\ufffd"

Decode = Callable[[Sequence[int]], str]


class Speller:
    """The text that a growing list of ids adds behind a prompt."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-_CONTEXT:])
        self._from, self._said = 0, len(self._ids)

    def push(self, token: int) -> str:
        """The text that is complete now; empty while the last character is not."""
        self._ids.append(token)
        before, now = self._decode(self._ids[self._from : self._said]), self._decode(self._ids[self._from :])
        if len(now) <= len(before) or now.endswith(_PARTIAL):
            return ""
        self._from, self._said = self._said, len(self._ids)
        return now[len(before) :]


def spell(decode: Decode, prompt: Sequence[int], generated: Sequence[int]) -> str:
    """The whole text that `generated` adds behind a prompt."""
    context = list(prompt[-_CONTEXT:])
    return decode([*context, *generated])[len(decode(context)) :]
