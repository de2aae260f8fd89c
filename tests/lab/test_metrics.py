"""Metrics against the libraries that have them, against closed forms, and on input that has none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from gateway.lab import lift, metrics, reliability
from gateway.lab.rows import LabError


def sample(n: int, shift: float, prevalence: float, seed: int = 3) -> tuple[metrics.Bools, metrics.Floats]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < prevalence
    return truth, rng.normal(size=n) + shift * truth


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=3, max_size=40))
@settings(max_examples=60, deadline=None)
def test_delong_gives_the_area_that_scikit_learn_gives(pairs: list[tuple[bool, int]]) -> None:
    """The AUC is the usual one, ties included, and lies inside its interval."""
    truth, scores = np.array([t for t, _ in pairs]), np.array([float(s) for _, s in pairs])
    if truth.all() or not truth.any():
        return
    found = metrics.auc(truth, scores)
    assert found.value == pytest.approx(roc_auc_score(truth, scores))
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 1


def test_delong_agrees_with_the_stratified_bootstrap() -> None:
    """Two ways to the same interval: the ends differ by less than 0.01."""
    truth, scores = sample(1500, 1.2, 0.1)
    ours = metrics.auc(truth, scores)
    other = metrics.bootstrap(lambda t, s: metrics.delong(t, s)[0], truth, scores, times=400)
    assert ours.low == pytest.approx(other.low, abs=0.01)
    assert ours.high == pytest.approx(other.high, abs=0.01)


def test_delong_covers_the_truth() -> None:
    """Of 200 samples of a known AUC, about 95 % have it in their interval (at least 90 %)."""
    true = 0.80229  # two normals one and a fifth apart: Phi(1.2 / sqrt 2)
    inside = 0
    for seed in range(200):
        found = metrics.auc(*sample(400, 1.2, 0.2, seed))
        inside += found.low <= true <= found.high
    assert 180 <= inside <= 199


def test_a_perfect_score_is_not_certain() -> None:
    """Ten and ten rows set apart without an error still leave room below 1."""
    truth = np.arange(20) < 10
    found = metrics.auc(truth, truth.astype(float))
    assert found.value == found.high == 1.0
    assert 0.6 < found.low < 0.8


def test_macro_auc_is_the_mean_and_narrower_than_its_parts() -> None:
    """The mean over sources does not see which source a row is of."""
    groups = [sample(400, 1.0, 0.3, seed) for seed in range(4)]
    lifted = [(t, s + 10 * i) for i, (t, s) in enumerate(groups)]
    macro, parts = metrics.macro_auc(lifted), [metrics.auc(t, s) for t, s in groups]
    assert macro.value == pytest.approx(np.mean([p.value for p in parts]))
    assert macro.high - macro.low < min(p.high - p.low for p in parts)


def test_average_precision_follows_the_prevalence() -> None:
    """The same ranking has a lower average precision where violations are rarer; of no skill it is the prevalence."""
    truth, scores = sample(3000, 1.5, 0.1)
    assert metrics.average_precision(truth, scores, 0.01, times=20).value < 0.6 * (
        metrics.average_precision(truth, scores, times=20).value
    )
    same = metrics.average_precision(truth, np.zeros(3000), 0.02, times=5)
    assert same.value == pytest.approx(0.02)


def test_operating_point_by_hand() -> None:
    """3 of 4 violations and 6 of 96 clean rows flagged, and the same at a prevalence of one in a thousand."""
    truth = np.arange(100) < 4
    flagged = (np.arange(100) < 3) | (np.arange(100) >= 94)
    found = metrics.operating(truth, flagged, 0.001)
    assert found.recall.value == 0.75
    assert found.precision is not None
    assert found.precision.value == pytest.approx(3 / 9)
    assert found.f1.value == pytest.approx(6 / 13)
    assert found.f1.low < 6 / 13 < found.f1.high
    assert found.false_positive_rate.value == pytest.approx(6 / 96)
    assert found.precision_at_production.value == pytest.approx(0.00075 / (0.00075 + 0.0625 * 0.999))


def test_no_flags_have_no_precision() -> None:
    """A system that flags nothing has no precision, and no lift over it can be told."""
    truth = np.arange(10) < 3
    nothing = np.zeros(10, bool)
    assert metrics.operating(truth, nothing, 0.01).precision is None
    assert lift.lift(truth, truth, nothing, times=20).precision is None
    assert lift.matched(truth, truth.astype(float), nothing, times=20) == lift.Matched(
        precision_at_its_recall=None, precision_at_half_more_recall=None, recall_at_its_precision=None
    )


def test_lift_by_hand() -> None:
    """Twice the precision at the same recall is a lift of 2 and of 1, inside their intervals."""
    truth = np.arange(400) < 100
    old = (np.arange(400) < 50) | (np.arange(400) >= 350)
    new = np.arange(400) < 50
    found = lift.lift(truth, new, old, times=200)
    assert found.precision is not None
    assert found.precision.value == pytest.approx(2.0)
    assert found.precision.low < 2 < found.precision.high
    assert found.recall == metrics.Interval(1.0, 1.0, 1.0)


def test_matched_lift_by_hand() -> None:
    """The old system finds 4 of 10 violations with 16 flags; the new ranking has 4 false hits behind its first 8."""
    truth = np.arange(200) < 10
    old = (np.arange(200) < 4) | (np.arange(200) >= 188)
    scores = np.zeros(200)
    scores[:8], scores[100:104], scores[8:10] = 3.0, 2.0, 1.0
    found = lift.matched(truth, scores, old, times=100)
    assert found.precision_at_its_recall is not None
    assert found.precision_at_its_recall.value == pytest.approx(1 / 0.25)  # the tie at the top has 8 of 10, all right
    assert found.precision_at_half_more_recall is not None
    assert found.precision_at_half_more_recall.value == found.precision_at_its_recall.value
    assert found.recall_at_its_precision is not None
    assert found.recall_at_its_precision.value == pytest.approx(1.0 / 0.4)  # all ten with four false hits: 10 of 14
    assert found.recall_at_its_precision.low < 2.5 < found.recall_at_its_precision.high


def test_no_point_matches_more_recall_than_there_is() -> None:
    """One and a half times a recall of 0.8 is none."""
    truth = np.arange(50) < 10
    found = lift.matched(truth, truth.astype(float), np.arange(50) < 8, times=20)
    assert found.precision_at_half_more_recall is None
    assert found.recall_at_its_precision is not None


def test_calibration_error_of_known_scores() -> None:
    """0 where one in four of the rows at 0.25 is a violation, 0.5 where they are at 0.75."""
    truth = np.tile([True, False, False, False], 25)
    assert reliability.calibration_error(truth, np.full(100, 0.25)).value == pytest.approx(0.0)
    assert reliability.calibration_error(truth, np.full(100, 0.75)).value == pytest.approx(0.5)
    at_production = reliability.calibration_error(truth, np.full(100, 0.25), prevalence=0.01)
    assert at_production.value == pytest.approx(0.24)


def test_scores_are_carried_to_another_prevalence_by_their_odds() -> None:
    """One in a hundred at a prevalence of one in a hundred is one in two where half are violations; ends stay."""
    carried = reliability.at_prevalence(np.array([0.0, 0.01, 1.0]), 0.01, 0.5)
    assert carried.tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_the_best_f1_threshold_splits_no_tie() -> None:
    """Rows of one score are flagged together; the threshold is one of the scores."""
    truth = np.array([True, True, False, True, False, False])
    scores = np.array([0.9, 0.8, 0.8, 0.8, 0.2, 0.1])
    assert metrics.best_f1_threshold(truth, scores) == 0.8


def test_lower_bound_is_below_the_share_and_grows_with_rows() -> None:
    """95 of 100 proves less than 950 of 1,000."""
    assert metrics.lower_bound(95, 100) < metrics.lower_bound(950, 1000) < 0.95


@pytest.mark.parametrize(
    ("truth", "scores", "says"),
    [
        ([], [], "no rows"),
        ([True, True], [0.1, 0.2], "all 2 rows are violations"),
        ([True, False], [0.1, float("nan")], "1 of 2 scores are not finite"),
        ([True, False], [0.1], "2 labels and 1 scores"),
    ],
)
def test_what_cannot_be_measured_says_why(truth: list[bool], scores: list[float], says: str) -> None:
    """Empty, one class, NaN, unequal lengths: an error of words, never a number."""
    with pytest.raises(LabError, match=says):
        metrics.checked(truth, scores)


def test_the_best_f1_threshold_rises_as_violations_get_rarer() -> None:
    """Where violations are rare, the threshold that was best on a balanced set flags too much."""
    truth, scores = sample(2000, 1.5, 0.5)
    assert metrics.best_f1_threshold(truth, scores, 0.01) > metrics.best_f1_threshold(truth, scores) + 0.3
