"""Sampled runs from the ledger to the auditor and to people, on both databases and a real store."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import date, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from corner import corner
from engines import CLOCK, echoing
from msgspec.structs import replace
from sqlalchemy import select
from stories import inference, invocation

from gateway.adapters.redis import RedisStore
from gateway.adapters.sql import tables
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.review_book import SqlReviewBook
from gateway.adapters.sql.runs import SqlRuns
from gateway.adapters.sql.samples import SqlSamples
from gateway.core.audit import TERMINAL
from gateway.core.auditor import AGE, AT_ONCE, TRIES, Auditor
from gateway.core.cache import canonical_json
from gateway.core.cascade import Finding, StageFailed, Step
from gateway.core.clock import Clock
from gateway.core.inference import Inference, Sample
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Meter, MeteredModel
from gateway.core.prices import Tariff
from gateway.core.review_ports import Filter
from gateway.core.task import Audit, ChainStage, Price, Review

ZONE = ZoneInfo("UTC")
PRICE = Price(start=date(2020, 1, 1), input_per_million="1", output_per_million="1")
MODEL = MeteredModel("moderation-llm", Tariff((PRICE,)))


class Judge:
    """An LLM stage that finds a message bad by its words, and may be away."""

    def __init__(self) -> None:
        self.away = False

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """One metered call."""
        async with meter.call(MODEL, "replica", 10, 1) as wire:
            if self.away:
                wire.refuse()
                raise StageFailed("model_unreachable")
            wire.settle(9, 1)
        return Finding(score=0.9 if "bad" in item["message"] else 0.1)


def manners(judge: Judge, **audit: Any) -> LoadedTask:
    """A task whose LLM is `judge`."""
    loaded = echoing(judge, "0123456789abcdef")  # type: ignore[arg-type]
    llm = ChainStage(name="llm", prompt="p", model="m", labels={"fine": "A", "rude": "B"}, accept_above=0.5,
                     accept_below=0.5)  # fmt: skip
    declared = replace(
        loaded.declared,
        stage=(*loaded.declared.stage, llm),
        audit=Audit(sample=0.25, **audit),
        review=Review(sample=0.5, sla_minutes=60),
    )
    return replace(loaded, declared=declared, steps=(*loaded.steps, Step(llm, judge)))


def sampled(message: str = "hello", asks: Any = "llm", **changed: Any) -> Inference:
    """A run of `manners` that was cleared, and drawn."""
    body = {"message": message}
    values = {"task": "manners", "owner_team": "etiquette", "input": body, "canonical": canonical_json(body)}
    asked = invocation(**{**values, **changed})
    return inference(asked, sample=Sample(asks, 0.25))


@pytest.fixture
async def store(valkey: str) -> AsyncIterator[RedisStore]:
    """The real counters."""
    store = RedisStore(corner(valkey))
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def judge() -> Judge:
    """The LLM."""
    return Judge()


def auditor(
    database: Database, store: RedisStore, ledger: SqlLedger, task: LoadedTask, clock: Clock = CLOCK
) -> Auditor:
    """One process's."""
    registry: Any = SimpleNamespace(tasks={task.name: task})
    return Auditor(SqlSamples(database), lambda: registry, store, ledger, clock, ZONE)


async def of(database: Database, run: Inference) -> Mapping[str, Any]:
    """The sample's row."""
    async with database.begin() as connection:
        query = select(tables.audit_sample).where(tables.audit_sample.c.id == run.id)
        return (await connection.execute(query)).mappings().one()


async def test_a_sample_is_durable_with_its_run_and_is_claimed_once(database: Database, ledger: SqlLedger) -> None:
    """Two processes never have the same one; what a process that died had claimed, another gets later."""
    runs = [sampled(trace_id=f"{number:032x}") for number in range(9)]
    await asyncio.gather(*(ledger.record(run) for run in runs))
    samples, now = SqlSamples(database), CLOCK.now()
    until = now + timedelta(minutes=5)
    claimed = await asyncio.gather(*(samples.claim(now, until, 3) for _ in range(4)))
    ids = [each.id for batch in claimed for each in batch]
    assert len(ids) == len(set(ids))
    rest = await samples.claim(now, until, 9)
    assert {*ids, *(each.id for each in rest)} == {run.id for run in runs}
    assert await samples.claim(now, until, 9) == []
    again = await samples.claim(until, until + timedelta(minutes=5), 100)
    assert {each.tries for each in again} == {2}
    assert again[0].input == {"message": "hello"}
    assert {each.id: each.trace_id for each in again} == {run.id: run.invocation.trace_id for run in runs}


async def test_what_the_llm_flags_goes_to_people_and_the_owner_pays(
    database: Database, ledger: SqlLedger, store: RedisStore, judge: Judge
) -> None:
    """An audit is an inference of its own with its parent's id; the text moves to the question, or is forgotten."""
    good, bad = sampled("good"), sampled("bad")
    await ledger.record(good)
    await ledger.record(bad)
    assert await auditor(database, store, ledger, manners(judge, review=0.0)).turn() == 2
    cleared, flagged = await of(database, good), await of(database, bad)
    assert (cleared["status"], cleared["verdict"], cleared["input"], cleared["review_id"]) == (
        "judged",
        "cleared",
        None,
        None,
    )
    assert (flagged["verdict"], flagged["people_probability"], flagged["input"]) == ("flagged", 1.0, None)
    run = await SqlRuns(database).find(flagged["audit_id"])
    assert run is not None
    assert (run.kind, run.parent_id, run.payer_team, run.caller_team) == ("audit", bad.id, "etiquette", "etiquette")
    assert [(a.stage, a.usage.input_tokens) for a in run.attempts] == [("llm", 9)]
    book = SqlReviewBook(database)
    (item,) = await book.listed(Filter(task="manners"))
    assert (item.kind, item.id, item.root_id, item.on_expiry) == ("audit", flagged["review_id"], item.id, None)
    assert (item.caller_team, item.fingerprint, item.score) == ("acme", bad.invocation.fingerprint, 0.9)
    question = await book.question(item, TERMINAL, CLOCK.now())
    assert question.input == {"message": "bad"}


async def test_what_the_llm_decided_itself_goes_straight_to_people(
    database: Database, ledger: SqlLedger, store: RedisStore, judge: Judge
) -> None:
    """No model is asked twice."""
    run = sampled("good", asks="people")
    await ledger.record(run)
    await auditor(database, store, ledger, manners(judge)).turn()
    row = await of(database, run)
    assert (row["verdict"], row["audit_id"], row["people_probability"]) == (None, None, 1.0)
    assert row["review_id"] is not None


async def test_audits_beyond_the_cap_of_the_day_are_dropped_and_counted(
    database: Database, ledger: SqlLedger, store: RedisStore, judge: Judge
) -> None:
    """All replicas share one counter; it is not the task's own quota."""
    runs = [sampled() for _ in range(4)]
    await asyncio.gather(*(ledger.record(run) for run in runs))
    task = manners(judge, per_day=3)
    await asyncio.gather(*(auditor(database, store, ledger, task).turn() for _ in range(2)))
    await auditor(database, store, ledger, task).turn()
    rows = [await of(database, run) for run in runs]
    assert sorted((row["status"], row["reason"]) for row in rows) == [("dropped", "per_day"), *[("judged", None)] * 3]
    assert all(row["input"] is None for row in rows)


async def test_an_llm_that_is_away_is_tried_again_and_then_people_may_be_asked(
    database: Database, ledger: SqlLedger, store: RedisStore, judge: Judge
) -> None:
    """The sample keeps its place; after the last try its verdict is `none`, and it is not lost."""
    run, judge.away = sampled(), True
    await ledger.record(run)
    for tries in range(TRIES):
        at = CLOCK.now() + timedelta(minutes=6 * tries)
        assert (await of(database, run))["status"] == "waiting"
        clock = Clock(CLOCK.new_id, lambda at=at: at)  # type: ignore[misc]
        await auditor(database, store, ledger, manners(judge, review=1.0), clock).turn()
    row = await of(database, run)
    assert (row["status"], row["verdict"], row["people_probability"]) == ("judged", "none", 1.0)


async def test_what_waited_too_long_or_was_erased_is_dropped(
    database: Database, ledger: SqlLedger, store: RedisStore, judge: Judge
) -> None:
    """Texts are not kept for ever, and nobody judges one that is gone; both are counted."""
    old, gone = sampled(received_at=CLOCK.now() - AGE - timedelta(hours=1)), sampled()
    await ledger.record(old)
    await ledger.record(gone)
    async with database.begin() as connection:
        erased = tables.audit_sample.update().where(tables.audit_sample.c.id == gone.id).values(input=None)
        await connection.execute(erased)
    await auditor(database, store, ledger, manners(judge)).turn()
    assert [(await of(database, run))["reason"] for run in (old, gone)] == ["too_old", "erased"]


async def test_a_turn_that_has_begun_is_finished_at_shutdown(
    database: Database, ledger: SqlLedger, store: RedisStore, judge: Judge
) -> None:
    """Closing waits for the audits under way, begins no more, and leaves the rest for others."""
    runs = [sampled() for _ in range(AT_ONCE + 2)]
    await asyncio.gather(*(ledger.record(run) for run in runs))
    each = auditor(database, store, ledger, manners(judge))
    following = asyncio.create_task(each.follow())
    await asyncio.sleep(0)
    each.close()
    await following
    left = [(await of(database, run))["status"] for run in runs]
    assert left.count("judged") == AT_ONCE
    assert left.count("waiting") == 2
