"""Near-duplicates: MinHash signatures of character shingles, found by locality-sensitive hashing (datasketch)."""

import re
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

PERMUTATIONS = 64
THRESHOLD = 0.8
_SHINGLE = 5
_WORDS = re.compile(r"\w+")


def near_duplicate_groups(texts: Sequence[str], threshold: float = THRESHOLD) -> list[int]:
    """For each text the index of the first text of its group; a text without a twin is a group of its own.

    Two texts share a group if the estimated Jaccard similarity of their five-letter shingles reaches `threshold`,
    directly or through others.
    """
    parent = list(range(len(texts)))
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    for i, signature in enumerate(MinHash.bulk([_shingles(t) for t in texts], num_perm=PERMUTATIONS, seed=1)):
        for twin in index.query(signature):
            _join(parent, i, twin)
        index.insert(i, signature, check_duplication=False)
    return [_root(parent, i) for i in range(len(texts))]


def _shingles(text: str) -> list[bytes]:
    # Not `core.text.fold`: that one serves the rules and changes with them, and a split must not.
    folded = " ".join(_WORDS.findall(text.casefold()))
    return [folded[i : i + _SHINGLE].encode() for i in range(max(1, len(folded) - _SHINGLE + 1))]


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def _join(parent: list[int], a: int, b: int) -> None:
    low, high = sorted((_root(parent, a), _root(parent, b)))
    parent[high] = low
