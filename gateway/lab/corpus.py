"""Packing our own corpus: the writers' JSONL files into one committed gzip, after checks against shortcuts."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from gateway.core.text import fold
from gateway.lab.duplicates import near_duplicate_groups
from gateway.lab.rows import CorpusRow, LabError, read_jsonl, write_rows

_WORDS = re.compile(r"\w+")
_RUN = 6
_FREQUENT = 40
"""A word's lean towards one label is judged from this many rows on."""


class Lint(NamedTuple):
    """What the checks saw. Twins and shared runs are ids; leans map a feature to its AUC or share of violations."""

    rows: int
    near_duplicates: list[str]
    shared_runs: int
    feature_auc: dict[str, float]
    leaning_words: dict[str, float]
    by_label: dict[str, int]


def pack_corpus(folder: Path, out: Path, hands: Sequence[str]) -> Lint:
    """Check `<hand>.jsonl` of each hand, drop near-duplicates, write one gzip JSONL. Raises LabError on bad rows."""
    rows = [row for hand in hands for row in read_jsonl(folder / f"{hand}.jsonl", CorpusRow)]
    problems = [p for row in rows for p in _problems(row)]
    if problems:
        raise LabError("\n".join(problems))
    groups = near_duplicate_groups([r.message for r in rows])
    kept = [row for i, row in enumerate(rows) if groups[i] == i]
    dropped = [row.id for i, row in enumerate(rows) if groups[i] != i]
    write_rows(out, kept)
    return lint(kept)._replace(near_duplicates=dropped)


def lint(rows: Sequence[CorpusRow]) -> Lint:
    """Shortcuts that a model could learn instead of the policy: length, role, punctuation or one word alone."""
    return Lint(
        rows=len(rows),
        near_duplicates=[],
        shared_runs=_shared_runs(rows),
        feature_auc=_feature_auc(rows),
        leaning_words=_leaning_words(rows),
        by_label=dict(Counter(f"{r.label}/{r.policy or r.difficulty}" for r in rows)),
    )


def _problems(row: CorpusRow) -> Iterable[str]:
    if (row.label == "violation") != (row.policy is not None):
        yield f"{row.id}: label {row.label} with policy {row.policy}"
    if not row.message.strip():
        yield f"{row.id}: empty message"


def _shared_runs(rows: Sequence[CorpusRow]) -> int:
    """Runs of six words that stand in more than one row."""
    owners: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        words = _WORDS.findall(fold(row.message))
        for i in range(len(words) - _RUN + 1):
            owners[tuple(words[i : i + _RUN])].add(row.id)
    return sum(len(ids) > 1 for ids in owners.values())


def _feature_auc(rows: Sequence[CorpusRow]) -> dict[str, float]:
    """AUC of single surface features for `violation`: 0.5 says that the feature tells nothing."""
    truth = np.array([r.label == "violation" for r in rows])
    features = {
        "words": [len(r.message.split()) for r in rows],
        "role_pro": [r.sender_role == "pro" for r in rows],
        "digits": [sum(c.isdigit() for c in r.message) for r in rows],
        "capitals": [sum(c.isupper() for c in r.message) / len(r.message) for r in rows],
        "punctuation": [sum(c in "!?.," for c in r.message) / len(r.message) for r in rows],
        "not_ascii": [sum(not c.isascii() for c in r.message) for r in rows],
    }
    return {name: round(float(roc_auc_score(truth, np.array(values, float))), 3) for name, values in features.items()}


def _leaning_words(rows: Sequence[CorpusRow]) -> dict[str, float]:
    """Frequent words of which more than four in five rows carry the same label, with their share of violations."""
    total: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for row in rows:
        words = set(_WORDS.findall(fold(row.message)))
        total.update(words)
        bad.update(words if row.label == "violation" else ())
    shares = {w: bad[w] / n for w, n in total.items() if n >= _FREQUENT}
    return {w: round(s, 2) for w, s in sorted(shares.items()) if not 0.2 <= s <= 0.8}
