"""The sweeper: what a dead process left behind is counted once, and never lost."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Table, select
from stories import ESTIMATE, inference, intent, invocation, new_id, now

from gateway.adapters.sql import tables
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.runs import SqlRuns
from gateway.adapters.sql.sweep import Sweeper
from gateway.core.errors import Unavailable
from gateway.core.inference import Intent, Invocation


@pytest.fixture
def sweeper(database: Database) -> Sweeper:
    """A sweeper on the database under test."""
    return Sweeper(database, new_id, now)


async def leave(ledger: SqlLedger, asked: Invocation, count: int = 1) -> list[Intent]:
    """Intents of a process that died ten minutes ago."""
    orphans = [intent(asked, created_at=now() - timedelta(minutes=10)) for _ in range(count)]
    await asyncio.gather(*map(ledger.intend, orphans))
    return orphans


async def rows(database: Database, table: Table) -> list[Any]:
    """All rows of a table."""
    async with database.begin() as connection:
        return list((await connection.execute(select(table))).mappings())


async def test_only_old_intents_are_orphans(ledger: SqlLedger, sweeper: Sweeper) -> None:
    """A call that is still under way is left alone; what comes back of an orphan is what was intended."""
    orphans = await leave(ledger, invocation())
    await ledger.intend(intent(invocation()))
    assert await sweeper.orphans(now() - timedelta(minutes=5)) == orphans


async def test_orphans_become_a_failed_inference_at_the_estimate(
    ledger: SqlLedger, database: Database, sweeper: Sweeper
) -> None:
    """Inference, attempts and calls appear together, unsettled, and their sums agree."""
    asked = invocation()
    orphans = await leave(ledger, asked, count=2)
    assert await sweeper.unsettle(orphans) == orphans
    run = await SqlRuns(database).find(asked.id)
    assert run is not None
    assert (run.decision.status, run.decision.reason) == ("failed", "process_died")
    assert run.usage == ESTIMATE + ESTIMATE
    calls = [call for attempt in run.attempts for call in attempt.calls]
    assert [(call.id, call.outcome, call.settled) for call in calls] == [(o.id, "lost", False) for o in orphans]
    (row,) = await rows(database, tables.inference)
    assert row["cost_nano"] == sum(call.usage.cost_nano for call in calls) == 100_000
    assert await rows(database, tables.intent) == []


async def test_sweepers_share_the_work(ledger: SqlLedger, database: Database) -> None:
    """Two processes that sweep the same orphans at once count each of them once."""
    orphans = [orphan for _ in range(20) for orphan in await leave(ledger, invocation())]
    both = await asyncio.gather(*(Sweeper(database, new_id, now).unsettle(orphans) for _ in range(4)))
    assert sorted(orphan.id for swept in both for orphan in swept) == sorted(orphan.id for orphan in orphans)
    assert len(await rows(database, tables.model_call)) == len(orphans)
    assert await rows(database, tables.intent) == []


async def test_what_was_settled_meanwhile_is_not_swept(ledger: SqlLedger, database: Database, sweeper: Sweeper) -> None:
    """An orphan that turns out to be alive, and recorded before the sweep, stays as it was recorded."""
    asked = invocation()
    orphans = await leave(ledger, asked)
    told = inference(asked, *orphans)
    await ledger.record(told)
    assert await sweeper.unsettle(orphans) == []
    run = await SqlRuns(database).find(asked.id)
    assert run is not None
    assert run.attempts == told.attempts


async def test_a_record_after_the_sweep_is_refused(ledger: SqlLedger, sweeper: Sweeper, database: Database) -> None:
    """The ledger already says that the inference failed; its caller hears the same, and nothing is counted twice."""
    asked = invocation()
    orphans = await leave(ledger, asked)
    await sweeper.unsettle(orphans)
    with pytest.raises(Unavailable):
        await ledger.record(inference(asked, *orphans))
    (call,) = await rows(database, tables.model_call)
    assert (call["settled"], call["cost_nano"]) == (False, ESTIMATE.cost_nano)


async def test_a_call_that_outlived_its_inference_is_counted_beside_it(
    ledger: SqlLedger, database: Database, sweeper: Sweeper
) -> None:
    """The recorded inference never changes: the call gets a failed inference of its own, which names the parent."""
    asked = invocation()
    orphans = await leave(ledger, asked)
    await ledger.record(inference(asked))
    await sweeper.unsettle(orphans)
    first, second = sorted(await rows(database, tables.inference), key=lambda row: row["cost_nano"])
    assert (first["id"], first["cost_nano"]) == (asked.id, 0)
    assert (second["parent_id"], second["cost_nano"]) == (asked.id, ESTIMATE.cost_nano)
    (call,) = await rows(database, tables.model_call)
    assert (call["id"], call["inference_id"]) == (orphans[0].id, second["id"])


async def test_an_intent_that_came_after_its_call_only_goes(
    ledger: SqlLedger, database: Database, sweeper: Sweeper
) -> None:
    """A commit that had seemed lost may bring it late. The call is in the books already: once, as it was settled."""
    asked = invocation()
    orphans = await leave(ledger, asked)
    told = inference(asked, *orphans)
    await ledger.record(told)
    for late in orphans:
        await ledger.intend(late)
    stranger = invocation()
    lost = await leave(ledger, stranger)
    assert await sweeper.unsettle([*orphans, *lost]) == lost
    calls = {row["id"]: row["settled"] for row in await rows(database, tables.model_call)}
    assert calls == {orphans[0].id: True, lost[0].id: False}
    assert await rows(database, tables.intent) == []
