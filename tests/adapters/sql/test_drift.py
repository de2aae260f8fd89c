"""Drift, from recorded runs to the event, on both databases."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from stories import inference, invocation, new_id

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.drift import SqlDrift
from gateway.adapters.sql.fingerprints import SqlFingerprints
from gateway.adapters.sql.ledger import SqlLedger
from gateway.core import drift
from gateway.core.clock import Clock
from gateway.core.drift import ROUTING, DriftWatch, QualityDrifted, Spread, drifts, stability_index

TASK, VERSION = "message-moderation", "0123456789abcdef"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
YESTERDAY = TODAY - timedelta(days=1)


def test_the_index_is_that_of_the_formula() -> None:
    """Equal distributions have none, whatever their size; halves against 5 to 1 have (1/3) ln 5 nearly."""
    assert stability_index([100, 300], [1000, 3000]) == pytest.approx(0, abs=1e-4)
    assert stability_index([50_000, 50_000], [10_000, 50_000]) == pytest.approx(0.5365, abs=1e-3)
    assert stability_index([0, 1000], [1000, 0]) < float("inf")


def test_chance_alone_does_not_alarm() -> None:
    """Two thousand scores a side of one distribution stay below a fifth of the alarm, a hundred times of a hundred."""
    dice = random.Random(3)

    def spread() -> Spread:
        counts = [0] * 12
        for _ in range(2000):
            counts[min(int(dice.betavariate(0.5, 3) * 12), 11)] += 1
        return Spread(VERSION, "scores of prefilter", tuple(counts))

    found = [drifts(TASK, YESTERDAY, [spread()], [spread()])[0] for _ in range(100)]
    assert max(each.index for each in found) < drift.ALARM / 5


def test_too_few_runs_and_another_version_say_nothing() -> None:
    """A new version has no reference but its own past."""
    many, few = Spread(VERSION, ROUTING, (2000, 100)), Spread(VERSION, ROUTING, (20, 10))
    assert drifts(TASK, YESTERDAY, [few], [many]) == []
    assert drifts(TASK, YESTERDAY, [many], [replace(many, fingerprint="f" * 16)]) == []
    routed_twice_as_often = Spread(VERSION, ROUTING, (1780, 220))
    (found,) = drifts(TASK, YESTERDAY, [routed_twice_as_often], [Spread(VERSION, ROUTING, (1900, 100))])
    assert found.alarming


async def test_a_drift_is_told_once_by_whoever_finds_it(
    database: Database, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes look at the same day: the operator hears once of the scores, and of nothing else."""
    monkeypatch.setattr(drift, "FEWEST", 20)
    stages = [{"name": "prefilter", "kind": "cnn"}, {"name": "llm", "kind": "chain"}]
    await SqlFingerprints(database).remember(VERSION, TASK, {"declaration": {"stage": stages}}, TODAY)
    runs = [_scored(YESTERDAY - timedelta(days=1 + i % 6), 0.002) for i in range(30)]
    runs += [_scored(YESTERDAY + timedelta(hours=1 + i % 20), 0.05) for i in range(30)]
    await asyncio.gather(*(ledger.record(run) for run in runs))
    heard: list[QualityDrifted] = []
    registry: Any = SimpleNamespace(tasks={TASK: None})
    clock = Clock(new_id, lambda: TODAY + timedelta(hours=2))
    watches = [DriftWatch(SqlDrift(database), lambda: registry, clock, [heard.append]) for _ in range(3)]
    await asyncio.gather(*(watch.turn() for watch in watches))
    await watches[0].turn()
    assert [(each.what, each.window_start) for each in heard] == [("scores of prefilter", YESTERDAY)]
    assert heard[0].index > drift.ALARM


def _scored(at: datetime, score: float) -> Any:
    run = inference(invocation(received_at=at))
    return replace(run, decision=replace(run.decision, score=score))
