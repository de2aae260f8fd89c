"""Calibration: scores that mean what they say, thresholds that keep their promise, files kept as they are written."""

import math
import random
from pathlib import Path

import pytest

from gateway.lab.calibrate import fit_platt, four_digits, threshold_for_flags, threshold_for_recall, write_thresholds
from gateway.lab.metrics import lower_bound
from gateway.lab.rows import LabError


def test_platt_finds_the_curve_that_made_the_labels() -> None:
    """Labels drawn from sigmoid(2x - 1) give a slope near 2 and an offset near -1."""
    rng = random.Random(3)
    logits = [rng.uniform(-3, 3) for _ in range(20_000)]
    truth = [rng.random() < 1 / (1 + math.exp(1 - 2 * x)) for x in logits]
    fit = fit_platt(logits, truth)
    assert fit.a == pytest.approx(2, abs=0.1)
    assert fit.b == pytest.approx(-1, abs=0.1)
    assert fit.share == pytest.approx(sum(truth) / len(truth))


def test_weights_count_as_rows() -> None:
    """A row of weight three is three rows."""
    logits, truth = [-1.0, 0.0, 0.5, 1.0], [False, True, False, True]
    weighted = fit_platt(logits, truth, [1, 1, 1, 3])
    repeated = fit_platt([*logits, 1.0, 1.0], [*truth, True, True])
    assert weighted == pytest.approx(repeated, rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "truth", "message"),
    [
        ([1.0, 2.0], [True, True], "both classes"),
        ([1.0, math.nan], [True, False], "not finite"),
        ([-1.0, 1.0, -2.0, 2.0], [True, False, True, False], "slope"),
        ([], [], "no rows"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(logits: list[float], truth: list[bool], message: str) -> None:
    """One class, NaN scores, scores that rank the wrong way: an error that says so."""
    with pytest.raises(LabError, match=message):
        fit_platt(logits, truth)


@pytest.mark.parametrize("value", [0.0312999, 0.03129, 0.0123, 1.0, 0.0, 1 / 3, 5e-324])
def test_four_digits_never_round_up(value: float) -> None:
    """Down, to the nearest value of four digits or to itself; rounding again changes nothing."""
    found = four_digits(value)
    assert found <= value
    assert found == pytest.approx(value, rel=1e-3)
    assert four_digits(found) == found


@pytest.mark.parametrize("most", [0.0, 0.1, 0.12, 0.5])
def test_the_lowest_threshold_that_flags_few_enough(most: float) -> None:
    """At it no more than the share is flagged, ties included; at the next lower score more would be."""
    scores = [i / 700 for i in range(97)] + [0.2] * 3
    threshold = threshold_for_flags(scores, most)
    assert sum(s >= threshold for s in scores) <= most * len(scores)
    lower = max(s for s in scores if s < threshold)
    assert sum(s >= lower for s in scores) > most * len(scores)


def test_rules_that_flag_too_much_leave_no_threshold() -> None:
    """Scores of 2 are flagged whatever the threshold; if these are too many, or there is no row, it is refused."""
    with pytest.raises(LabError, match="at any threshold"):
        threshold_for_flags([2.0] * 3 + [0.1] * 7, 0.2)
    with pytest.raises(LabError, match="no hard negatives"):
        threshold_for_flags([], 0.2)
    assert threshold_for_flags([-1.0] * 9 + [0.5], 0.2) == 0.0


@pytest.mark.parametrize("target", [0.9, 0.95])
def test_threshold_is_the_highest_that_keeps_the_promise(target: float) -> None:
    """The lower bound meets the target, and one more miss would break it."""
    scores = [i / 300 for i in range(300)]
    promise = threshold_for_recall(scores, target)
    assert promise.lower_bound >= target
    assert lower_bound(300 - promise.missed - 1, 300) < target
    assert sum(s < promise.threshold for s in scores) == promise.missed
    assert promise.recall == pytest.approx(1 - promise.missed / 300)


def test_equal_scores_fall_on_the_same_side() -> None:
    """What scores exactly the threshold is not missed."""
    promise = threshold_for_recall([0.2] * 100 + [0.9] * 100, 0.95)
    assert (promise.threshold, promise.missed, promise.recall) == (0.2, 0, 1.0)


def test_too_few_rows_prove_nothing() -> None:
    """Twenty violations cannot show a recall of 95 %, even if all are found."""
    with pytest.raises(LabError, match="20 violations cannot prove"):
        threshold_for_recall([0.5] * 20, 0.95)


TOML = """# a task
owner = "team"   # ours

[[stage]]
name = "prefilter"
kind = "cnn"
accept_below = 0.5  # by hand

[[stage]]
name = "llm"   # the last
kind = "chain"
"""


def test_thresholds_are_written_and_the_rest_stays(tmp_path: Path) -> None:
    """Keys are set in the named stage; comments and order stay."""
    path = tmp_path / "task.toml"
    path.write_text(TOML)
    write_thresholds(path, "prefilter", {"accept_below": 0.03129}, "recall 0.95")
    write_thresholds(path, "llm", {"accept_above": 0.6, "accept_below": 0.4}, "precision 0.9")
    assert path.read_text() == TOML.replace("0.5  # by hand", "0.03129 # recall 0.95").rstrip("\n") + (
        "\naccept_above = 0.6 # precision 0.9\naccept_below = 0.4\n"
    )


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    """Nothing is written where there is no such stage."""
    path = tmp_path / "task.toml"
    path.write_text(TOML)
    with pytest.raises(LabError, match="no stage `cnn`"):
        write_thresholds(path, "cnn", {"accept_below": 0.1}, "")
    assert path.read_text() == TOML
