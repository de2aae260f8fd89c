"""Whether a result that was made again is the committed one: every hash to the letter, every estimate within reach."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

TOLERANCE = 0.01
SHARE_OF_INTERVAL = 0.25
RELATIVE = 0.05
STATED = (
    f"hashes must be equal; estimates may differ by {TOLERANCE}, or by a quarter of their 95 % interval where that is "
    f"more; fitted slopes, offsets and thresholds by {RELATIVE:.0%} of themselves"
)
"""Batch sizes and processors move low-order bits of an LLM's log-probs, and with them a few decisions: one of fifteen
violations of a source is seven points of its recall, and a quarter of its interval."""
_EXACT = ("data_sha256", "sha256", "suite_sha256", "task_fingerprint", "platt_sha256", "threshold_sha256")
_ESTIMATES = ("value", "macro_pass_rate")
_FITTED = ("a", "b", "accept_above", "prefilter_below")
_DRAWN = "curves"


class Difference(NamedTuple):
    """A hash or a number that came out otherwise; `now` is NaN where it is missing."""

    result: str
    where: str
    committed: float | str
    now: float | str

    def __str__(self) -> str:
        return f"{self.result}: {self.where} is {_shown(self.now)}, committed {_shown(self.committed)}"


class Comparison(NamedTuple):
    """How many hashes and numbers were compared, and those that differ."""

    compared: int
    differences: list[Difference]


def compare(result: str, committed: Any, now: Any) -> Comparison:
    """`committed` says what there is to compare; what only `now` has is new, and no difference."""
    pairs = list(_pairs(committed, now, ""))
    differences = [
        Difference(result, where, before, after)
        for where, before, after, allowed in pairs
        if not (before == after or _near(before, after, allowed))
    ]
    return Comparison(len(pairs), differences)


def _pairs(committed: Any, now: Any, path: str) -> Iterator[tuple[str, float | str, float | str, float]]:
    """(where, committed, now, allowed difference)."""
    if not isinstance(committed, Mapping):
        return
    there: Mapping[str, Any] = now if isinstance(now, Mapping) else {}
    for key, value in committed.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, int | float | str) and (allowed := _allowed(key, committed)) is not None:
            yield where, value, there.get(key, math.nan), allowed
        elif key != _DRAWN:
            yield from _pairs(value, there.get(key), where)


def _allowed(key: str, of: Mapping[str, Any]) -> float | None:
    """By how much the number under `key` may differ; None where it is not compared."""
    if key in _EXACT:
        return 0.0
    if key in _FITTED:
        return RELATIVE * abs(float(of[key]))
    if key not in _ESTIMATES:
        return None
    return max(TOLERANCE, SHARE_OF_INTERVAL * (float(of.get("high", 0.0)) - float(of.get("low", 0.0))))


def _near(before: float | str, after: Any, allowed: float) -> bool:
    return isinstance(before, int | float) and isinstance(after, int | float) and abs(before - after) <= allowed


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"
