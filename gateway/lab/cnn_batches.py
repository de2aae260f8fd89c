"""What the prefilter's network is fed in training: messages with some words changed, in batches of like length."""

import random
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gateway.adapters.prefilter.reading import Batch, Reader, Reading, collate, words_of
from gateway.lab.lexicon import nearest
from gateway.lab.rows import Row

POLICIES = ("abuse", "sexual", "spam_scam", "off_platform", "partnership", "job_seeking")
POSITIVE = "violation"
WINDOW = 4096
"""Rows whose lengths are sorted together: batches hold messages of like length, their order stays random."""
_KIN = 4


class Changer:
    """Reads a message with some words changed, so that the network does not hang on single words."""

    def __init__(self, reader: Reader, table: Tensor, spelled: float, kindred: float) -> None:
        """`spelled` is the share of words read by their letter groups, `kindred` that of words read as a neighbour of
        the first vectors in `table`."""
        self._reader, self._spelled, self._kindred = reader, spelled, kindred
        words = len(reader.alphabet.words)
        self._kin: list[list[int]] = nearest(table, words, _KIN).tolist() if kindred else []

    def read(self, text: str, rng: random.Random) -> Reading | None:
        """None for a text that is too long."""
        reading = self._reader.read(text)
        if reading is None:
            return None
        pairs = zip(words_of(text), reading.words, strict=True)
        return reading._replace(words=[self._changed(word, rows, rng) for word, rows in pairs])

    def _changed(self, word: str, rows: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
        """Some words by their letter groups although the lexicon has them, some as a word of like meaning."""
        chance = rng.random()
        if chance < self._spelled:
            return self._reader.groups_of(word)
        if chance < self._spelled + self._kindred and rows[0] < len(self._kin) and word.isalpha():
            return (rng.choice(self._kin[rows[0]]),)
        return rows


def batches(
    rows: Sequence[Row], changer: Changer, size: int, seed: int, taught: Mapping[str, float]
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Batches with their targets and the policy's number, -1 where there is none.

    A target is what `taught` says of the row's id, else 1.0 for a violation and 0.0 for a clean row.
    """
    rng = random.Random(seed)
    for start in range(0, len(rows), WINDOW):
        read = [(changer.read(r.text, rng), r) for r in rows[start : start + WINDOW]]
        window = sorted(((x, r) for x, r in read if x is not None), key=lambda pair: len(pair[0].bytes))
        parts = [window[i : i + size] for i in range(0, len(window), size)]
        rng.shuffle(parts)
        for part in parts:
            target = torch.tensor([taught.get(r.id, float(r.label == POSITIVE)) for _, r in part])
            policy = torch.tensor([POLICIES.index(r.policy) if r.policy in POLICIES else -1 for _, r in part])
            yield collate([x for x, _ in part]), target, policy
