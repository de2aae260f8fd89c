"""The tokeniser as the server uses it: raw text to ids and back, and which ids mean more than text."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from gateway.local.llm.grammar import Grammars


class Piece(NamedTuple):
    """A token of a text and the characters `[start, stop)` that it stands for."""

    id: int
    text: str
    start: int
    stop: int


class Text:
    """A tokeniser with the ids that end an answer. Nothing is added to a text but what the tokeniser itself adds."""

    def __init__(self, tokenizer: Tokenizer, ends: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self.ends = frozenset(ends)
        self.special = frozenset(id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special)

    def grammars(self, vocabulary: int) -> Grammars:
        """What compiles JSON schemas for this tokeniser and a model with `vocabulary` logits."""
        return Grammars(self._tokenizer.to_str(), vocabulary, sorted(self.ends))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def pieces(self, text: str) -> list[Piece]:
        """The tokens of a text with their places in it."""
        encoded = self._tokenizer.encode(text)
        spans = zip(encoded.ids, encoded.offsets, strict=True)
        return [Piece(id_, text[start:stop], start, stop) for id_, (start, stop) in spans]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens spelled out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def decode_visible(self, ids: Sequence[int]) -> str:
        """The text of some ids without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
