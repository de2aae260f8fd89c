"""The one door to the tokenizers library: the ids of a text, and the most that it can have."""

import asyncio

from tokenizers import Tokenizer

# Above this, encoding takes long enough to be felt by the other requests of the event loop.
_LONG_CHARS = 4096
# What a chat server's own template may add around the turns, or a post-processor around the text.
_MARGIN = 16


class BadTokenizer(Exception):
    """The file is no tokeniser."""


class TokenFile:
    """A pinned `tokenizer.json`."""

    def __init__(self, path: str) -> None:
        """Raises BadTokenizer."""
        try:
            self._tokenizer = Tokenizer.from_file(path)
        except Exception as error:  # The library raises bare Exceptions.
            raise BadTokenizer(str(error)) from error

    def ids(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the model's server adds."""
        return list(self._tokenizer.encode(text).ids)

    def count(self, text: str, special: bool = True) -> int:
        """The number of tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=special).ids)


class TokenCounter:
    """The most tokens that a prompt can have, for reservations.

    `head` is the text with which every prompt of the stage begins: its tokens are counted once. Without a tokeniser,
    the number of UTF-8 bytes bounds the number of tokens of every byte-level or byte-fallback vocabulary.
    """

    def __init__(self, tokens: TokenFile | None, head: str) -> None:
        self._tokens = tokens
        self._head = head
        self._head_tokens = tokens.count(head) if tokens is not None else 0

    async def most(self, text: str) -> int:
        """An upper bound; close where a tokeniser is pinned."""
        if self._tokens is None:
            return len(text.encode("utf-8", "surrogatepass")) + _MARGIN
        known = text.startswith(self._head)
        tail = text[len(self._head) :] if known else text
        if len(tail) > _LONG_CHARS:
            counted = await asyncio.to_thread(self._tokens.count, tail, special=False)
        else:
            counted = self._tokens.count(tail, special=False)
        return counted + (self._head_tokens if known else 0) + _MARGIN
