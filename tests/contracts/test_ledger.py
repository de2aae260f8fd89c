"""The ledger's port, on both databases."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import Table, func, select
from stories import TRUTH, held, inference, intent, invocation, new_id, now

from gateway.adapters.sql import tables
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger, open_ledger
from gateway.adapters.sql.migrate import upgrade
from gateway.adapters.sql.runs import SqlRuns
from gateway.adapters.sql.writers import open_writer
from gateway.core.errors import Unavailable
from gateway.core.inference import Inference, Intent, Usage

MIGRATIONS = Path(__file__).parents[2] / "migrations"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Connections to look at what was written."""
    database = Database(database_url)
    yield database
    await database.aclose()


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[SqlLedger]:
    """The ledger under test."""
    ledger = open_ledger(database_url)
    yield ledger
    await ledger.aclose()


async def count(database: Database, table: Table) -> int:
    """Rows in a table."""
    async with database.begin() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def rows(database: Database, table: Table) -> list[Any]:
    """All rows of a table."""
    async with database.begin() as connection:
        return list((await connection.execute(select(table))).mappings())


async def test_what_was_recorded_is_read_back(ledger: SqlLedger, database: Database) -> None:
    """A run is the story that was recorded, to the microsecond and the nano-dollar."""
    asked = invocation(parent_id=new_id(), kind="audit")
    told = inference(asked, intent(asked), intent(asked))
    await ledger.record(told)
    run = await SqlRuns(database).find(told.id)
    assert run is not None
    assert run.attempts == told.attempts
    assert run.decision == told.decision
    assert run.usage == told.usage == TRUTH + TRUTH
    assert (run.received_at, run.kind, run.parent_id) == (asked.received_at, "audit", asked.parent_id)
    assert (run.task, run.fingerprint, run.trace_id) == (asked.task, asked.fingerprint, asked.trace_id)
    assert (run.caller_team, run.owner_team, run.payer_team) == ("acme", "trust-and-safety", "acme")


async def test_every_column_of_the_story_has_its_value(ledger: SqlLedger, database: Database) -> None:
    """What no run shows is in its column all the same: attribution for erasure, who pays in each model call."""
    asked = invocation(idempotency_key="order-17")
    await ledger.record(inference(asked, made := intent(asked)))
    (row,) = await rows(database, tables.inference)
    assert (row["item_id"], row["thread_id"], row["subject_id"]) == ("item-1", "thread-1", "subject-1")
    assert (row["tags"], row["idempotency_key"], row["policies"]) == (["web", "beta"], "order-17", None)
    assert (row["input_tokens"], row["output_tokens"], row["cost_nano"]) == (480, 1, 48_100)
    assert (row["cache"], row["key_id"], len(row["input_hash"])) == ("miss", asked.caller.key_id, 32)
    (call,) = await rows(database, tables.model_call)
    assert (call["payer_team"], call["owner_team"], call["caller_team"]) == ("acme", "trust-and-safety", "acme")
    assert (call["inference_id"], call["attempt_id"], call["stage"]) == (asked.id, made.attempt_id, "llm")


async def test_a_record_settles_its_own_intents(ledger: SqlLedger, database: Database) -> None:
    """The intents of an inference go with its record; those of others stay."""
    asked, other = invocation(), intent(invocation())
    mine = intent(asked)
    await asyncio.gather(ledger.intend(mine), ledger.intend(other))
    assert await count(database, tables.intent) == 2
    await ledger.record(inference(asked, mine))
    assert [row["id"] for row in await rows(database, tables.intent)] == [other.id]


async def test_many_share_one_commit(database_url: str, database: Database) -> None:
    """What waits while a commit is under way goes into the next one together, and nothing is lost."""
    writer = Counting(database_url)
    ledger = SqlLedger(writer)
    await asyncio.gather(*(ledger.record(inference()) for _ in range(500)))
    assert await count(database, tables.inference) == 500
    assert writer.batches <= 10
    await ledger.aclose()


async def test_a_bad_row_fails_alone(ledger: SqlLedger, database: Database) -> None:
    """One inference that the database refuses does not take those that came with it along."""
    asked = invocation()
    prefilter, chain = inference(asked, intent(asked)).attempts
    call = structs.replace(chain.calls[0], usage=Usage(-1, 0, 0))
    bad = inference(asked, attempts=(prefilter, structs.replace(chain, calls=(call,))))
    good = [inference() for _ in range(20)]
    results = await asyncio.gather(*map(ledger.record, [*good[:10], bad, *good[10:]]), return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 10 + [Unavailable] + [type(None)] * 10
    assert await count(database, tables.inference) == 20
    assert await count(database, tables.model_call) == 0


async def test_recording_again_changes_nothing(ledger: SqlLedger, database: Database) -> None:
    """A record that is written again, because the answer to its commit got lost, is there once and no error."""
    told = inference()
    await ledger.record(told)
    await ledger.record(told)
    assert await count(database, tables.inference) == 1


async def test_closing_writes_what_waits(database_url: str, database: Database) -> None:
    """Shutdown drains the queue; what comes after is refused."""
    ledger = open_ledger(database_url)
    waiting = [asyncio.ensure_future(ledger.record(inference())) for _ in range(50)]
    await asyncio.sleep(0)
    await ledger.aclose()
    await asyncio.gather(*waiting)
    assert await count(database, tables.inference) == 50
    with pytest.raises(Unavailable):
        await ledger.record(inference())


async def test_a_caller_that_leaves_is_recorded_all_the_same(ledger: SqlLedger, database: Database) -> None:
    """Cancelling the wait does not cancel the record."""
    leaving = asyncio.ensure_future(ledger.record(inference()))
    await asyncio.sleep(0)
    leaving.cancel()
    await ledger.record(inference())
    assert leaving.cancelled()
    assert await count(database, tables.inference) == 2


async def test_the_queue_is_bounded(database_url: str) -> None:
    """A full queue refuses at once instead of growing."""
    ledger = SqlLedger(open_writer(database_url), capacity=2)
    first = [asyncio.ensure_future(ledger.record(inference())) for _ in range(3)]
    results = await asyncio.gather(*first, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), Unavailable]
    await ledger.aclose()


async def test_relaxed_does_not_wait_but_writes(database_url: str, database: Database) -> None:
    """In relaxed mode a record returns once it is queued; closing makes it durable. Intents wait in every mode."""
    ledger = open_ledger(database_url, sync=False)
    await ledger.record(inference())
    assert ledger.depth == 1
    await ledger.intend(intent(invocation()))
    assert await count(database, tables.intent) == 1
    await ledger.aclose()
    assert await count(database, tables.inference) == 1


async def test_a_held_item_is_put_to_a_person(ledger: SqlLedger, database: Database) -> None:
    """The review and its text are written with the inference; a second run that joins it adds no other."""
    review_id, first = new_id(), invocation()
    await ledger.record(held(first, review_id))
    await ledger.record(held(invocation(), review_id))
    (review,) = await rows(database, tables.review)
    assert (review["id"], review["inference_id"], review["severity"]) == (review_id, first.id, 2)
    assert review["policies"] == ["off_platform"]
    (text,) = await rows(database, tables.review_text)
    assert (text["review_id"], text["input"].encode()) == (review_id, first.canonical)
    assert text["subject_id"] == "subject-1"
    assert await count(database, tables.inference) == 2


async def test_only_invocations_are_held(ledger: SqlLedger, database: Database) -> None:
    """A replay that comes out as a hold keeps no text: nobody waits for it."""
    await ledger.record(held(invocation(kind="replay", parent_id=new_id()), new_id()))
    assert await count(database, tables.review) == await count(database, tables.review_text) == 0


async def test_an_idempotency_key_names_its_first_run_until_it_expires(ledger: SqlLedger, database: Database) -> None:
    """A key that is used again names the first run for a day, then the new one."""
    first = invocation(idempotency_key="k", received_at=now() - timedelta(hours=30))
    again = invocation(idempotency_key="k", received_at=now() - timedelta(hours=29))
    later = invocation(idempotency_key="k")
    for asked, names in ((first, first.id), (again, first.id), (later, later.id)):
        await ledger.record(inference(asked))
        (row,) = await rows(database, tables.idempotency)
        assert row["inference_id"] == names


async def test_a_database_that_is_away_is_unavailable_in_bounded_time(tmp_path: Path) -> None:
    """No caller waits longer than the ledger's patience, on either database."""
    for url in (f"sqlite:///{tmp_path}/nowhere/gateway.db", f"postgresql://postgres@/postgres?host={tmp_path}"):
        ledger = SqlLedger(open_writer(url), patience_s=0.1)
        async with asyncio.timeout(60):
            with pytest.raises(Unavailable):
                await ledger.record(inference())
        await ledger.aclose()


async def test_what_waits_is_written_when_the_database_comes_back(tmp_path: Path) -> None:
    """A database that returns within the patience costs nobody an error."""
    url = f"sqlite:///{tmp_path}/later/gateway.db"
    ledger = SqlLedger(open_writer(url), patience_s=30)
    waiting = asyncio.ensure_future(ledger.record(inference()))
    await asyncio.sleep(0)
    await upgrade(url, MIGRATIONS)
    await waiting
    await ledger.aclose()


async def test_a_severed_connection_is_replaced(postgres_url: str) -> None:
    """When Postgres drops the writer's connection the next record goes over a new one."""
    await upgrade(postgres_url, MIGRATIONS)
    ledger, database = open_ledger(postgres_url), Database(postgres_url)
    await ledger.record(inference())
    async with database.begin() as connection:
        await connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await ledger.record(inference())
    assert await count(database, tables.inference) == 2
    await ledger.aclose()
    await database.aclose()


class Counting:
    """A real writer that counts its batches."""

    def __init__(self, url: str) -> None:
        self._writer = open_writer(url)
        self.batches = 0

    async def write(self, items: Iterable[Intent | Inference]) -> None:
        self.batches += 1
        await self._writer.write(items)

    async def reason_of(self, inference_id: str) -> tuple[str | None] | None:
        return await self._writer.reason_of(inference_id)

    async def aclose(self) -> None:
        await self._writer.aclose()
