"""Setting a prefilter's threshold: the highest that keeps the promised recall, and what it costs in model calls."""

import math
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.adapters.prefilter.weights import UnusableWeights, load_prefilter
from gateway.lab.calibrate import Promise, threshold_for_recall, write_thresholds
from gateway.lab.metrics import lower_bound
from gateway.lab.rows import LabError, Row
from gateway.lab.train_cnn import POSITIVE, logits


class Share(NamedTuple):
    """`passed` of `rows` score at or above the threshold and go on to the next stage."""

    passed: int
    rows: int


def score_rows(weights: Path, rows: Sequence[Row]) -> list[float]:
    """Calibrated scores; 1 for a text that the network does not read whole, since it is always passed on."""
    try:
        prefilter = load_prefilter(weights)
    except UnusableWeights as error:
        raise LabError(f"{error.file}: {error.message}; {error.hint}") from error
    found = logits(prefilter.network, prefilter.reader, [row.text for row in rows])
    return [1.0 if math.isnan(x) else prefilter.calibration.score(x) for x in found]


def set_threshold(task_folder: Path, rows: Sequence[Row], target: float) -> Promise:
    """Choose `accept_below` of the task's cnn stage on the violations among `rows` and write it to task.toml.

    `rows` must have been used for nothing else. Raises LabError where the promise cannot be kept.
    """
    stage = _cnn_stage(task_folder / "task.toml")
    violations = [row for row in rows if row.label == POSITIVE]
    promise = threshold_for_recall(score_rows(task_folder / stage["weights"], violations), target)
    note = (
        f"recall {promise.recall:.3f} of {promise.positives} violations, lower bound {promise.lower_bound:.3f} "
        f"(target {target})"
    )
    write_thresholds(task_folder / "task.toml", stage["name"], {"accept_below": promise.threshold}, note)
    return promise


def passed_on(rows: Sequence[Row], scores: Sequence[float], threshold: float) -> dict[str, Share]:
    """By source and label: how much a threshold leaves to the next stage. For violations that is recall."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row, score in zip(rows, scores, strict=True):
        groups[f"{row.source}/{row.label}"].append(score)
        if row.difficulty is not None:
            groups[f"{row.source}/{row.label}/{row.difficulty}"].append(score)
    return {name: Share(sum(s >= threshold for s in found), len(found)) for name, found in sorted(groups.items())}


def describe(shares: Mapping[str, Share]) -> dict[str, str]:
    """For people: the share, its count, and for violations the one-sided lower bound."""
    return {
        name: f"{s.passed / s.rows:.3f} of {s.rows}"
        + (f" (at least {lower_bound(s.passed, s.rows):.3f})" if f"/{POSITIVE}" in name else "")
        for name, s in shares.items()
    }


def _cnn_stage(task_toml: Path) -> dict[str, str]:
    try:
        document = tomllib.loads(task_toml.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise LabError(f"{task_toml}: {error}") from error
    found = [stage for stage in document.get("stage", []) if stage.get("kind") == "cnn"]
    if len(found) != 1:
        raise LabError(f"{task_toml}: there are {len(found)} cnn stages, not one")
    stage: dict[str, str] = found[0]
    return stage
