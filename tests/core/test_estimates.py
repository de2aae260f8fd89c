"""Estimates against streams whose truth is known."""

import numpy as np
import pytest

from gateway.core.estimates import Cell, Judgement, Rates, Stratum, proportion, rates

RUNS = 40_000
PREVALENCE, RULED, RECALL_OF_LLM = 0.02, 0.2, 0.9
AUDITED, REVIEWED, CHECKED = 0.05, 0.2, 0.05
WORLDS = 100


class Stream:
    """One period of a cascade: rules hold, a prefilter clears, an LLM holds or clears; people see what is drawn.

    What `cleared` says is drawn from makes the number of violations that the prefilter lets through.
    """

    def __init__(self, seed: int, missed: float) -> None:
        self.dice = np.random.default_rng(seed)
        bad = self.dice.binomial(RUNS, PREVALENCE)
        ruled, rest = self._split(bad, RULED)
        let_through, to_llm = self._split(rest, missed)
        caught, unseen = self._split(to_llm, RECALL_OF_LLM)
        good_cleared, good_to_llm = self._split(RUNS - bad, 0.93)
        good_held, good_clean = self._split(good_to_llm, 0.1)
        self.strata = [
            Stratum(ruled + 20, True, [Cell(self._people(ruled, 20, 1.0))]),
            self._audited(let_through, good_cleared),
            Stratum(caught + good_held, True, [Cell(self._people(caught, good_held, 0.7))]),
            Stratum(unseen + good_clean, False, [Cell(self._people(unseen, good_clean, CHECKED))]),
        ]
        share_caught = RULED + (1 - RULED) * (1 - missed) * RECALL_OF_LLM
        false = (1 - PREVALENCE) * 0.07 * 0.1 + 20 / RUNS
        self.prevalence = PREVALENCE
        self.recall = share_caught
        self.precision = PREVALENCE * share_caught / (PREVALENCE * share_caught + false)

    def _split(self, of: int, share: float) -> tuple[int, int]:
        hits = int(self.dice.binomial(of, share))
        return hits, of - hits

    def _people(self, bad: int, good: int, share: float) -> list[Judgement]:
        seen = int(self.dice.binomial(bad, share)), int(self.dice.binomial(good, share))
        return [Judgement(True, 1 / share)] * seen[0] + [Judgement(False, 1 / share)] * seen[1]

    def _audited(self, bad: int, good: int) -> Stratum:
        """The LLM sees a share: flags most of the bad and a few of the good; people see all these, and a fifth else."""
        bad_seen, good_seen = self.dice.binomial(bad, AUDITED), self.dice.binomial(good, AUDITED)
        bad_flagged, bad_cleared = self._split(bad_seen, 0.8)
        good_flagged, good_cleared = self._split(good_seen, 0.01)
        return Stratum(bad + good, False, [
            Cell(self._people(bad_flagged, good_flagged, 1.0), [20.0] * (bad_flagged + good_flagged)),
            Cell(self._people(bad_cleared, good_cleared, REVIEWED), [20.0] * (bad_cleared + good_cleared)),
        ])  # fmt: skip


def test_intervals_hold_the_truth_in_about_95_of_100_periods() -> None:
    """Where the prefilter lets so little through that most periods' samples hold a miss or two, or none at all."""
    hits = dict.fromkeys(("recall", "precision", "prevalence"), 0)
    for seed in range(WORLDS):
        stream = Stream(seed, missed=0.01)
        found = rates(stream.strata, draws=1000)
        for name in hits:
            estimate = getattr(found, name)
            hits[name] += estimate.low <= getattr(stream, name) <= estimate.high
    # 95 of 100, less two standard deviations of so many periods.
    assert min(hits.values()) >= 0.90 * WORLDS, hits


def test_estimates_are_weighted_by_what_was_drawn() -> None:
    """Each judged item stands for the others of its cell; without the weights these would be 50 % and 20 %."""
    held = Stratum(100, True, [Cell([Judgement(True)] * 60 + [Judgement(False)] * 40)])
    cells = [
        Cell([Judgement(True)] * 6 + [Judgement(False)] * 4, [10.0] * 10),
        Cell([Judgement(False, 9.0)] * 10, [10.0] * 90),
    ]
    found = rates([held, Stratum(1000, False, cells)])
    assert found.recall is not None
    assert found.recall.value == pytest.approx(60 / (60 + 1000 * 0.1 * 0.6))
    assert found.precision is not None
    assert found.precision.value == pytest.approx(0.6)
    assert found.prevalence is not None
    assert found.prevalence.value == pytest.approx(120 / 1100)


def test_unequal_weights_widen_the_interval() -> None:
    """A sample in which a few items stand for most of the stream says less than its size."""
    even = [Judgement(i % 2 == 0) for i in range(100)]
    skewed = [Judgement(i % 2 == 0, 50.0 if i < 4 else 1.0) for i in range(100)]
    narrow, wide = (rates([Stratum(1000, True, [Cell(some)])]).precision for some in (even, skewed))
    assert narrow is not None
    assert wide is not None
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_nothing_is_said_of_what_nobody_judged() -> None:
    """Where a part of a side has no judgement, rates that need it are missing, and the others are not."""
    held = Stratum(100, True, [Cell([Judgement(True)] * 50)])
    unjudged = Stratum(1000, False, [Cell([], [20.0] * 10)])
    found = rates([held, unjudged])
    assert found.precision is not None
    assert (found.recall, found.prevalence) == (None, None)
    assert rates([]) == Rates(recall=None, precision=None, prevalence=None, calibration_error=None)


def test_the_calibration_error_is_that_of_the_stream() -> None:
    """Scores of 0.05 where a tenth are violations, for nine tenths of the runs; scores that are right elsewhere."""
    cleared = Stratum(900, False, [Cell([Judgement(i < 50, 1.0, 0.05) for i in range(500)])])
    held = Stratum(100, True, [Cell([Judgement(i < 90, 1.0, 0.9) for i in range(100)])])
    error = rates([cleared, held]).calibration_error
    assert error is not None
    assert error.value == pytest.approx(0.9 * 0.05)
    assert error.low < 0.045 < error.high


def test_wilsons_interval() -> None:
    """The published example: 7 of 34 (Newcombe 1998)."""
    found = proportion(7, 34)
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (0.1035, 0.3680)
    assert proportion(0, 0) is None
