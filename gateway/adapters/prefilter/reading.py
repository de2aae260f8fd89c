"""Text → numbers: the bytes of the cleaned text, and its words as rows of an embedding table.

The bytes keep what disguises leave behind (odd spelling, symbols, case); the words are read from the folded text, in
which the usual disguises are undone. A word of the lexicon has a row of its own; any other is the mean of the rows of
its letter groups, so that a word never seen still resembles its kin.
"""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from msgspec import Struct
from torch import Tensor

from gateway.core.text import clean, fold

TRAILING = 8
"""Zero bytes and (half as many) zero words behind every text: wide enough that no window that touches the text is cut
off, so that more padding changes nothing, and a message scores the same in any batch."""

_SPELLED = 40
"""Letters of a word without a row of its own that are read in groups; the bytes are read to the end in any case."""
_REMEMBERED = 4096
"""Such words whose groups are kept at hand."""

_LEXICON_BYTES = 1 << 22

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]")


class Alphabet(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a network reads. `lexicon` holds the words of the table's first rows, in order, as `packed` makes it."""

    max_bytes: int
    max_words: int
    buckets: int
    shortest_group: int
    longest_group: int
    lexicon: bytes

    @property
    def words(self) -> list[str]:
        """The lexicon's words. Raises ValueError if it is damaged or grows beyond all reason."""
        unpacking = zlib.decompressobj()
        try:
            text = unpacking.decompress(self.lexicon, _LEXICON_BYTES)
        except zlib.error as error:
            raise ValueError(f"the lexicon is damaged: {error}") from error
        if not unpacking.eof:
            raise ValueError(f"the lexicon is cut short, or has more than {_LEXICON_BYTES} bytes")
        return text.decode().split(" ")


def packed(words: Sequence[str]) -> bytes:
    """A lexicon for an `Alphabet`: compressed, for it was counted from messages of all kinds."""
    return zlib.compress(" ".join(words).encode(), 9)


class Reading(NamedTuple):
    """One message: the bytes of its cleaned text, and for each word its rows of the table."""

    bytes: bytes
    words: Sequence[tuple[int, ...]]


class Batch(NamedTuple):
    """`bytes` (B, L) padded with 0; `rows` and `starts` list the table rows of all words of the batch; `places` (B, T)
    says which of those words stands where, 0 for none; `counts` (B, 1) words per message."""

    bytes: Tensor
    rows: Tensor
    starts: Tensor
    places: Tensor
    counts: Tensor


class Reader:
    """Reads messages for a network that was trained on this alphabet."""

    def __init__(self, alphabet: Alphabet) -> None:
        self.alphabet = alphabet
        self._rows = {word: (row,) for row, word in enumerate(alphabet.words, 1)}
        self._first_bucket = len(self._rows) + 1
        self._spelled = lru_cache(maxsize=_REMEMBERED)(self.groups_of)

    @property
    def table_rows(self) -> int:
        """Rows of the embedding table: an empty one, the lexicon, and the buckets of letter groups."""
        return self._first_bucket + self.alphabet.buckets

    def read(self, text: str) -> Reading | None:
        """None for a text that the network would not see whole."""
        raw = clean(text).encode(errors="replace")
        if len(raw) > self.alphabet.max_bytes:
            return None
        words = words_of(text)
        if len(words) > self.alphabet.max_words:
            return None
        return Reading(raw, [self._rows.get(word) or self._spelled(word[:_SPELLED]) for word in words])

    def groups_of(self, word: str) -> tuple[int, ...]:
        """The rows of a word's letter groups, whether or not the lexicon has the word."""
        marked = f"<{word}>"
        sizes = range(self.alphabet.shortest_group, self.alphabet.longest_group + 1)
        groups = {marked[i : i + n] for n in sizes for i in range(len(marked) - n + 1)} or {marked}
        return tuple(sorted({self._first_bucket + zlib.crc32(g.encode()) % self.alphabet.buckets for g in groups}))


def words_of(text: str) -> list[str]:
    """Words, numbers (by their length only) and punctuation marks of the folded text."""
    return ["0" * min(len(w), 6) if w.isdigit() else w for w in _WORD.findall(fold(text))]


def collate(readings: Sequence[Reading]) -> Batch:
    """Messages as padded tensors."""
    length = max(len(r.bytes) for r in readings) + TRAILING
    raw = b"".join(r.bytes.ljust(length, b"\0") for r in readings)
    width = max(len(r.words) for r in readings) + TRAILING // 2
    rows: list[int] = []
    starts: list[int] = []
    places: list[list[int]] = []
    for reading in readings:
        first = len(starts) + 1
        for word in reading.words:
            starts.append(len(rows))
            rows.extend(word)
        places.append([*range(first, len(starts) + 1), *[0] * (width - len(reading.words))])
    return Batch(
        bytes=torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(len(readings), length).long(),
        rows=torch.tensor(rows, dtype=torch.long),
        starts=torch.tensor(starts, dtype=torch.long),
        places=torch.tensor(places, dtype=torch.long),
        counts=torch.tensor([[max(len(r.words), 1)] for r in readings], dtype=torch.float32),
    )
