"""The prefix cache: what many prompts begin with is read once.

A prefix becomes worth keeping when two prompts have shared it. Lengths are cut to whole blocks, so that prompts that
differ by a word in their first tokens of data still find the same entry.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence

import torch

from gateway.local.llm.attention import Context, KeysValues

BLOCK = 16
MIN_GAIN = 2 * BLOCK  # a new entry must save at least this many tokens over the ones that are there
RECENT = 8

Key = tuple[str, tuple[int, ...]]


class PrefixCache:
    """Keys and values (1, H, T, D) by adapter and token ids; at most `max_tokens` tokens, the least used go first."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._entries: OrderedDict[Key, KeysValues] = OrderedDict()
        self._recent: dict[str, deque[tuple[int, ...]]] = {}

    def longest(self, adapter: str, prompt: Sequence[int]) -> tuple[int, ...]:
        """The longest kept prefix of a prompt that leaves at least its last token to read; () where there is none."""
        fits = (ids for owner, ids in self._entries if owner == adapter and _starts(prompt, ids))
        return max(fits, key=len, default=())

    def get(self, adapter: str, ids: tuple[int, ...]) -> KeysValues | None:
        """The entry that `longest` named, None if it had to go since; () is the empty prefix."""
        if not ids:
            return KeysValues()
        if (adapter, ids) not in self._entries:
            return None
        self._entries.move_to_end((adapter, ids))
        return self._entries[adapter, ids]

    def learn(self, adapter: str, prompts: Sequence[Sequence[int]], context: Context) -> None:
        """Look at prompts that were just read, row by row of `context`, and keep what they share with recent ones."""
        recent = self._recent.setdefault(adapter, deque(maxlen=RECENT))
        for row, prompt in enumerate(prompts):
            shared = max((_common(prompt, other) for other in recent), default=0)
            length = min(shared, len(prompt) - 1) // BLOCK * BLOCK
            if self._max_tokens >= length >= len(self.longest(adapter, prompt)) + MIN_GAIN:
                slots = context.held[row].nonzero().squeeze(1)[:length]
                self._keep((adapter, tuple(prompt[:length])), context.cache.select(torch.tensor([row]), slots))
            recent.append(tuple(prompt))

    def _keep(self, key: Key, entry: KeysValues) -> None:
        self._entries[key] = entry
        while sum(len(ids) for _, ids in self._entries) > self._max_tokens:
            self._entries.popitem(last=False)


def _starts(prompt: Sequence[int], ids: tuple[int, ...]) -> bool:
    return len(ids) < len(prompt) and tuple(prompt[: len(ids)]) == ids


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
