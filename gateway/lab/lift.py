"""How many times the old system's rates the new one's are: as both are run, and where the new one's ranking is cut at
the old one's recall or precision. Intervals are of paired, stratified bootstraps.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.lab.metrics import CONFIDENCE, Bools, Floats, Interval, checked

TIMES, SEED = 1000, 7
MORE_RECALL = 1.5
Counts = npt.NDArray[np.int64]


class Lift(Struct, frozen=True, kw_only=True):
    """Ratios new ÷ old on the same rows; None where the old system's rate is 0."""

    precision: Interval | None
    recall: Interval | None
    f1: Interval | None
    flag_rate: Interval | None


class Matched(Struct, frozen=True, kw_only=True):
    """Ratios new ÷ old where only the new system's threshold moves: its precision at the old one's recall and at one
    and a half times that recall, its recall where it is as precise as the old one. None where there is no such point.
    """

    precision_at_its_recall: Interval | None
    precision_at_half_more_recall: Interval | None
    recall_at_its_precision: Interval | None


def lift(truth: Bools, new: Bools, old: Bools, *, times: int = TIMES) -> Lift:
    """Of two systems' flags. Raises LabError for an empty set and for one class only."""

    def rates(counts: Counts, flagged: Bools) -> Floats:
        hits, flags, violations = counts[truth & flagged].sum(), counts[flagged].sum(), counts[truth].sum()
        precision, f1 = hits / flags if flags else 0.0, 2 * hits / (flags + violations)
        return np.array([precision, hits / violations, f1, flags / counts.sum()])

    checked(truth, new.astype(float))
    found = _with_intervals(truth, lambda counts: rates(counts, new) / rates(counts, old), times)
    return Lift(**dict(zip(Lift.__struct_fields__, found, strict=True)))


def matched(truth: Bools, scores: Floats, old: Bools, *, times: int = TIMES) -> Matched:
    """Of the new system's ranking and the old one's flags; rows of one score are flagged together. Raises LabError."""
    truth, scores = checked(truth, scores)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)

    def ratios(counts: Counts) -> Floats:
        hits = np.cumsum((counts * truth)[order])[last_of_tie]
        flags = np.cumsum(counts[order])[last_of_tie]
        recall, precision = hits / hits[-1], hits / np.maximum(flags, 1)
        old_recall = counts[truth & old].sum() / hits[-1]
        old_precision = counts[truth & old].sum() / counts[old].sum()
        as_precise = recall[precision >= old_precision]
        return np.array([
            _first(precision, recall >= old_recall) / old_precision,
            _first(precision, recall >= MORE_RECALL * old_recall) / old_precision,
            (as_precise.max() if len(as_precise) else 0.0) / old_recall,
        ])  # fmt: skip

    found = _with_intervals(truth, ratios, times)
    return Matched(**dict(zip(Matched.__struct_fields__, found, strict=True)))


def _first(values: Floats, where: Bools) -> float:
    places = np.flatnonzero(where)
    return float(values[places[0]]) if len(places) else np.nan


def _with_intervals(truth: Bools, ratios: Callable[[Counts], Floats], times: int) -> list[Interval | None]:
    """`ratios` sees how often each row is counted: once for the estimates, as drawn for their spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = ratios(np.ones(len(truth), np.int64))
        spread = np.array([ratios(counts) for counts in _draws(truth, times)])
    return [_spread(float(value), spread[:, i]) for i, value in enumerate(values)]


def _draws(truth: Bools, times: int) -> Iterator[Counts]:
    """How often each row is drawn, with as many of each class as there are."""
    rng = np.random.default_rng(SEED)
    bad, good = np.flatnonzero(truth), np.flatnonzero(~truth)
    for _ in range(times):
        picked = np.concatenate([rng.choice(bad, len(bad)), rng.choice(good, len(good))])
        yield np.bincount(picked, minlength=len(truth))


def _spread(value: float, spread: Floats) -> Interval | None:
    finite: Any = spread[np.isfinite(spread)]
    if not np.isfinite(value) or not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))
