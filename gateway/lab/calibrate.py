"""Scores that mean what they say, and thresholds that keep a promise about recall.

Platt scaling fits two numbers on rows that were used for nothing else; a prior correction carries the result from the
share of violations among those rows to that of the deployment. A prefilter may clear what scores below a threshold;
the threshold is the highest for which the lower confidence bound of recall still meets the target.
"""

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tomlkit
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from tomlkit.exceptions import TOMLKitError

from gateway.lab.metrics import checked, lower_bound
from gateway.lab.rows import LabError
from gateway.lab.whole import write_whole


class PlattFit(NamedTuple):
    """sigmoid(a·x + b); `share` is the weighted share of positives in the rows of the fit."""

    a: float
    b: float
    share: float


class Promise(NamedTuple):
    """What a threshold keeps: `recall` of `positives` rows, of which `missed` score below, and its lower bound."""

    threshold: float
    recall: float
    lower_bound: float
    positives: int
    missed: int


def fit_platt(logits: Sequence[float], truth: Sequence[bool], weights: Sequence[float] | None = None) -> PlattFit:
    """Maximum likelihood, with next to no regularisation. Raises LabError for one class only or scores without value.

    A slope that is not positive is refused: such scores rank clean rows above violations.
    """
    t, x = checked(truth, logits)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    model = LogisticRegression(C=1e6, max_iter=1000).fit(x[:, None], t, sample_weight=w)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        raise LabError(
            f"the scores rank clean rows above violations (slope {slope:.3g}): there is nothing to calibrate"
        )
    return PlattFit(slope, offset, float((w * t).sum() / w.sum()))


def threshold_for_recall(positive_scores: Sequence[float], target: float) -> Promise:
    """The highest threshold below which so few positives lie that recall's lower bound (one-sided, 95 %) is `target`.

    Raises LabError where even missing none would not prove the target: then more rows are needed.
    """
    scores = sorted(positive_scores)
    if not scores or lower_bound(len(scores), len(scores)) < target:
        raise LabError(f"{len(scores)} violations cannot prove a recall of {target}, even if none is missed")
    missed = 0
    while missed + 1 < len(scores) and lower_bound(len(scores) - missed - 1, len(scores)) >= target:
        missed += 1
    # Equal scores fall on the same side: what is missed lies strictly below.
    threshold = scores[missed]
    threshold = four_digits(threshold)
    below = sum(s < threshold for s in scores)
    kept = len(scores) - below
    return Promise(threshold, kept / len(scores), lower_bound(kept, len(scores)), len(scores), below)


def threshold_for_flags(clean_scores: Sequence[float], most: float) -> float:
    """The lowest threshold, of four digits, from which on at most the share `most` of clean rows is flagged.

    Raises LabError where there are no rows, or where that would need a threshold above 1.
    """
    scores = sorted(clean_scores, reverse=True)
    if not scores:
        raise LabError("there are no hard negatives to choose a threshold on")
    allowed = int(most * len(scores))
    if allowed >= len(scores):
        return 0.0
    # Equal scores fall on the same side: what is not allowed lies strictly below.
    threshold = four_digits(float(np.nextafter(scores[allowed], np.inf)), ROUND_CEILING) if scores[allowed] > 0 else 0.0
    if threshold > 1:
        raise LabError(f"more than {most:.0%} of {len(scores)} hard negatives are flagged at any threshold")
    return threshold


def write_thresholds(task_toml: Path, stage: str, values: Mapping[str, float], note: str) -> None:
    """Set keys of the named stage, with `note` behind the first, and leave the rest of the file as it is written.

    Raises LabError if the file has no such stage.
    """
    try:
        document = tomlkit.parse(task_toml.read_text("utf-8"))
    except (OSError, TOMLKitError) as error:
        raise LabError(f"{task_toml}: {error}") from error
    table = next((t for t in document.get("stage", []) if t.get("name") == stage), None)
    if table is None:
        raise LabError(f"{task_toml}: there is no stage `{stage}`")
    for i, (key, value) in enumerate(values.items()):
        table[key] = tomlkit.float_(repr(value))
        if i == 0:
            table[key].comment(note)
    write_whole(task_toml, tomlkit.dumps(document).encode())


def four_digits(threshold: float, rounding: str = ROUND_FLOOR) -> float:
    """Four significant digits, as `decimal` rounds: down for what clears, since up would clear more than promised."""
    exact = Decimal(repr(threshold))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), rounding))
