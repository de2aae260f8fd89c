"""The queue, its outbox and its sweeps, on both databases."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from held_queue import ANN, BEN, BLOCK, DELIVER, LEAD, OWNER, Queue
from msgspec.structs import replace
from sqlalchemy import func, select, update
from stories import inference, invocation, new_id, now

from gateway.adapters.sql import tables
from gateway.adapters.sql.audit import SqlAudit
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.privacy import erase
from gateway.adapters.sql.review_sweep import SqlReviewSweep
from gateway.core import review_rules
from gateway.core.audit import Actor
from gateway.core.clock import Clock
from gateway.core.errors import Conflict, NotFound
from gateway.core.holds import hold_of
from gateway.core.inference import Attribution, Decision
from gateway.core.review_checks import appeal, mark_gold
from gateway.core.review_clock import ReviewClock
from gateway.core.review_ports import Filter
from gateway.core.reviews import LEASE, LEASES, Reviewer, state_of
from gateway.core.task import Review


async def test_the_same_input_is_one_question_with_many_runs(queue: Queue) -> None:
    """Runs of a team join while the item waits; a decision settles them all, says so, and nothing joins it then."""
    await queue.webhook()
    runs = [await queue.hold("call me") for _ in range(3)]
    other = await queue.hold("something else")
    item = await queue.take()
    assert item is not None
    assert (item.runs, item.id) == (3, runs[0].review_id)
    assert await queue.book.find(runs[2].review_id or "") == item
    done = await queue.decide(item, ANN, BLOCK)
    (told,) = await queue.told()
    assert [run["run_id"] for run in told["data"]["runs"]] == [run.id for run in runs]
    outcome = await queue.book.outcome(runs[2].review_id or "", now())
    assert outcome is not None
    assert (outcome.state, outcome.outcome, outcome.runs, outcome.final) == ("decided", "block", 3, True)
    later = await queue.hold("call me")
    assert [i.id for i in await queue.book.listed(Filter(state="open"))] == [later.review_id, other.review_id]
    assert done.runs == 3


async def test_teams_do_not_share_questions(queue: Queue) -> None:
    """What another team sends is its own matter, word for word the same or not."""
    mine = await queue.hold("call me")
    theirs = await queue.hold("call me", caller=replace(mine.invocation.caller, team="other"))
    found = {item.id for item in await queue.book.listed(Filter())}
    assert found == {mine.review_id, theirs.review_id}


async def test_two_reviewers_never_hold_one_item(queue: Queue) -> None:
    """However many ask at once, each gets an item of their own, or none."""
    for _ in range(6):
        await queue.hold()
    takers = [Reviewer(OWNER, f"{n:016x}") for n in range(10)]
    taken = [item for item in await asyncio.gather(*(queue.take(by) for by in takers)) if item is not None]
    assert len(taken) == len({item.id for item in taken}) == 6
    assert await queue.take() is None


async def test_a_reviewer_has_so_many_items_and_no_more(queue: Queue) -> None:
    """Whose hands are full gets nothing, others do; a lease that has ended counts no more."""
    for _ in range(LEASES + 1):
        await queue.hold()
    taken = [await queue.take() for _ in range(LEASES + 1)]
    assert [item is None for item in taken] == [False] * LEASES + [True]
    assert await queue.take(BEN) is not None
    assert await queue.take(at=now() + LEASE + timedelta(seconds=1)) is not None


async def test_the_queue_follows_the_rank(queue: Queue) -> None:
    """Grave and likely first; another task's reviewer, or another team's, gets nothing."""
    mild = await queue.hold()
    grave = await queue.hold()
    await _set(queue, grave.review_id, rank_at=now() - timedelta(days=1))
    assert await queue.take(Reviewer("other", "d" * 16)) is None
    assert await queue.take(task="another") is None
    first, second = await queue.take(), await queue.take()
    assert (first and first.id, second and second.id) == (grave.review_id, mild.review_id)


async def test_a_lease_that_ended_returns_and_its_token_is_stale(queue: Queue) -> None:
    """The next reviewer has it at once, swept or not; who comes late changes nothing."""
    await queue.hold()
    first = await queue.take()
    assert first is not None
    late = now() + LEASE
    assert await queue.take(BEN) is None
    second = await queue.take(BEN, late)
    assert second is not None
    assert second.id == first.id
    with pytest.raises(Conflict):
        await queue.decide(first, ANN, DELIVER)
    events = await queue.book.history(first.id)
    assert [event.event for event in events] == ["leased", "lease_expired", "leased"]
    assert await queue.sweep.lapse(late + LEASE) == 1
    assert (await queue.book.find(first.id) or first).state == "open"


async def test_the_item_is_the_sum_of_its_events(queue: Queue) -> None:
    """Every change is written with its event: actor, time, before, after, the version that held it; positions count."""
    await queue.hold()
    item = await queue.take()
    assert item is not None
    await queue.decide(item, ANN, BLOCK, timedelta(minutes=1))
    await queue.reviews.change(item.id, lambda i: review_rules.undo(i, LEAD, now()))
    found, events = await queue.book.find(item.id), await queue.book.history(item.id)
    assert found is not None
    assert (found.position, found.state) == (len(events), state_of(list(events)))
    assert [event.actor.key_id for event in events] == [ANN.key_id, ANN.key_id, LEAD.key_id]
    assert {event.fingerprint for event in events} == {"0123456789abcdef"}


async def test_a_refused_rule_writes_nothing(queue: Queue) -> None:
    """A stale token leaves the row, the events and the outbox as they were; an unknown id is not found."""
    await queue.webhook()
    await queue.hold()
    item = await queue.take()
    assert item is not None
    with pytest.raises(Conflict):
        await queue.decide(replace(item, lease_token="stale"), ANN, BLOCK)
    assert await queue.book.find(item.id) == item
    assert len(await queue.book.history(item.id)) == 1
    assert await queue.told() == []
    with pytest.raises(NotFound):
        await queue.reviews.change(new_id(), lambda i: review_rules.undo(i, ANN, now()))


async def test_an_undone_decision_is_never_told(queue: Queue) -> None:
    """The message waits for the window; what follows an outcome that was told is an amendment."""
    await queue.webhook()
    await queue.hold()
    item = await queue.take()
    assert item is not None
    await queue.decide(item, ANN, BLOCK, timedelta(minutes=1))
    assert await queue.told() == []
    await queue.reviews.change(item.id, lambda i: review_rules.undo(i, ANN, now()))
    again = await queue.take(BEN)
    assert again is not None
    await queue.decide(again, BEN, DELIVER)
    told = await queue.told(now() + timedelta(minutes=2))
    assert [(m["data"]["outcome"], m["data"]["revision"]) for m in told] == [("deliver", 2)]


@pytest.mark.parametrize("on_expiry", ["block", "deliver"])
async def test_a_deadline_settles_once_over_all_replicas(queue: Queue, on_expiry: Any) -> None:
    """Four sweeps at once: each item expires once, with one event and one message; a lease is let run out."""
    await queue.webhook()
    declared = Review(sla_minutes=1, on_expiry=on_expiry)
    items = [await queue.hold(declared=declared) for _ in range(10)]
    busy = await queue.take()
    late = now() + timedelta(minutes=2)
    done = await asyncio.gather(*(SqlReviewSweep(queue.database).expire(late) for _ in range(4)))
    assert sum(done) == len(items) - 1
    told = await queue.told(late)
    assert {(m["type"], m["data"]["outcome"], m["data"]["by"]) for m in told} == {
        ("review.expired", on_expiry, "clock")
    }
    assert len(told) == len(items) - 1
    assert busy is not None
    assert (await queue.decide(busy, ANN, BLOCK)).state == "decided"


async def test_what_an_error_held_no_clock_delivers(queue: Queue) -> None:
    """Deferred because a model was away, or without a score: escalated, though the task says deliver. Nor is an item
    delivered that such a run joined.
    """
    declared = Review(sla_minutes=1, on_expiry="deliver")
    away = Decision(status="deferred", action="review", score=0.4, reason="model_timeout")
    assert hold_of(away, declared, now()).on_expiry == "escalate"
    unsure = Decision(status="deferred", action="review", score=0.4, reason="unsure")
    assert hold_of(unsure, declared, now()).on_expiry == "deliver"
    scored = await queue.hold("call me", declared)
    joined = invocation(canonical=scored.invocation.canonical, input=scored.invocation.input)
    story = inference(joined, decision=away, review_id=new_id(), hold=hold_of(away, declared, joined.received_at))
    await queue.ledger.record(story)
    assert await queue.sweep.expire(now() + timedelta(minutes=2)) == 1
    (item,) = await queue.book.listed(Filter())
    assert (item.runs, item.state, item.outcome) == (2, "escalated", None)


async def test_a_block_holds_what_reads_almost_the_same(queue: Queue) -> None:
    """The look-alike is kept from the clock; a delivery changes nothing for its look-alikes."""
    declared = Review(sla_minutes=60, on_expiry="deliver")
    text = "You can reach me on my own number and we both save the fee of this platform, I come this week"
    for ruling, kept in ((DELIVER, "deliver"), (BLOCK, "escalate")):
        first = await queue.hold(text, declared)
        near = await queue.hold(text + "!", declared)
        far = await queue.hold("Could you come on Tuesday at ten to look at the tap in our kitchen?", declared)
        await _set(queue, first.review_id, rank_at=now() - timedelta(days=1))
        item = await queue.take()
        assert item is not None
        assert item.id == first.review_id
        await queue.decide(item, ANN, ruling)
        look_alike, other = await queue.book.find(near.review_id or ""), await queue.book.find(far.review_id or "")
        assert look_alike is not None
        assert other is not None
        assert (look_alike.state, look_alike.outcome, look_alike.on_expiry) == ("open", None, kept)
        assert other.on_expiry == "deliver"
        for left in (await queue.take(LEAD), await queue.take(LEAD)):
            assert left is not None
            await queue.decide(left, LEAD, DELIVER)


async def test_a_dispute_is_settled_by_a_third_and_the_caller_hears_of_it(queue: Queue) -> None:
    """Decided, disputed by a blind second, overturned by a third: three reviewers, two messages, the last prevails."""
    await queue.webhook()
    declared = Review(second=1.0)
    run = await queue.hold()
    first = await queue.take(ANN)
    assert first is not None
    await queue.decide(first, ANN, BLOCK, declared=declared)
    assert await queue.take(ANN) is None
    second = await queue.take(BEN)
    assert second is not None
    assert (second.kind, second.root_id) == ("second", first.id)
    question = await queue.book.question(second, BEN.actor, now())
    assert question.input == run.invocation.input
    await queue.decide(second, BEN, DELIVER, declared=declared)
    assert await queue.take(BEN) is None
    third = await queue.take(LEAD)
    assert third is not None
    assert third.kind == "third"
    await queue.decide(third, LEAD, DELIVER, declared=declared)
    root = await queue.book.find(first.id)
    assert root is not None
    assert root.outcome == "deliver"
    told = sorted((m["data"]["revision"], m["type"], m["data"]["outcome"]) for m in await queue.told())
    assert told == [(1, "review.decided", "block"), (2, "review.amended", "deliver")]
    assert [e.event for e in await queue.book.history(root.id)] == ["leased", "decided", "disputed", "overturned"]


async def test_an_appeal_goes_to_another_reviewer(queue: Queue) -> None:
    """Who decided cannot take it; upheld, the outcome stands and nobody is told anew."""
    run = await queue.hold()
    item = await queue.take(ANN)
    assert item is not None
    await queue.decide(item, ANN, BLOCK)
    actor = Actor("acme", run.invocation.caller.key_id)
    await queue.reviews.change(item.id, lambda i: appeal(i, actor, now(), "it is only my shop's name", new_id()))
    assert await queue.take(ANN) is None
    question = await queue.take(BEN)
    assert question is not None
    assert question.kind == "appeal"
    await queue.decide(question, BEN, BLOCK)
    events = await queue.book.history(item.id)
    assert [event.event for event in events][-2:] == ["appealed", "upheld"]


async def test_an_undo_takes_the_second_question_back(queue: Queue) -> None:
    """A question about a decision that is no more is withdrawn."""
    await queue.hold()
    item = await queue.take()
    assert item is not None
    await queue.decide(item, ANN, BLOCK, timedelta(minutes=1), Review(second=1.0))
    await queue.reviews.change(item.id, lambda i: review_rules.undo(i, ANN, now()))
    states = {each.kind: each.state for each in await queue.book.listed(Filter())}
    assert states == {"held": "open", "second": "withdrawn"}


async def test_known_items_are_found_for_who_has_not_judged_them(queue: Queue) -> None:
    """Not for who decided the item itself."""
    await queue.hold()
    item = await queue.take()
    assert item is not None
    await queue.decide(item, ANN, BLOCK)
    await queue.reviews.change(item.id, lambda i: mark_gold(i, LEAD.actor, now()))
    assert await queue.reviews.known(ANN, item.task) is None
    found = await queue.reviews.known(BEN, item.task)
    assert found is not None
    assert found.id == item.id


async def test_every_read_of_a_text_is_in_the_audit_log(queue: Queue) -> None:
    """Who read which item."""
    await queue.hold()
    item = await queue.take()
    assert item is not None
    await queue.book.question(item, ANN.actor, now())
    (act,) = await SqlAudit(queue.database).latest(10)
    assert (act.act, act.subject, act.by.key_id) == ("review_read", item.id, ANN.key_id)


async def test_texts_end_with_their_retention(queue: Queue) -> None:
    """Those of settled items go; what a person still has to judge stays, however old."""
    waiting, settled = await queue.hold(), await queue.hold()
    await _set(queue, settled.review_id, rank_at=now() - timedelta(days=1))
    item = await queue.take()
    assert item is not None
    await queue.decide(item, ANN, BLOCK)
    assert await queue.sweep.forget_texts(now() - timedelta(days=1)) == 0
    assert await queue.sweep.forget_texts(now() + timedelta(days=1)) == 1
    for run, text in ((waiting, waiting.invocation.input), (settled, None)):
        found = await queue.book.find(run.review_id or "")
        assert found is not None
        assert (await queue.book.question(found, ANN.actor, now())).input == text


async def test_reviews_of_the_old_code_are_adopted(queue: Queue) -> None:
    """A review without an item gets one, once; no clock settles it, and its runs hear of the outcome."""
    await queue.webhook()
    run = await queue.hold()
    async with queue.database.begin() as connection:
        await connection.execute(tables.review_item.delete())
        await _unlink(connection, queue.database)
    assert [await queue.sweep.adopt(None), await queue.sweep.adopt(None)] == [1, 0]
    assert await queue.sweep.expire(now() + timedelta(days=9)) == 0
    item = await queue.take()
    assert item is not None
    await queue.decide(item, ANN, BLOCK)
    (told,) = await queue.told()
    assert told["data"]["runs"][0]["run_id"] == run.id


async def test_notes_on_an_adopted_item_are_erased_too(queue: Queue) -> None:
    """Its question does not name the item, and yet what was written about it is that person's."""
    await queue.hold(attribution=Attribution(subject_id="person-1"))
    async with queue.database.begin() as connection:
        await connection.execute(tables.review_item.delete())
        await _unlink(connection, queue.database)
    await queue.sweep.adopt(None)
    item = await queue.take()
    assert item is not None
    await queue.decide(item, ANN, replace(BLOCK, note="my number is 0170"))
    assert "0170" in repr(await queue.book.history(item.id))
    await erase(queue.database, "person-1", now())
    assert "0170" not in repr(await queue.book.history(item.id))


async def test_a_turn_of_the_clock_does_all_that_is_due(queue: Queue) -> None:
    """Leases lapse and deadlines pass, and an item whose lease just lapsed expires in the same turn; texts of settled
    items go once their days are over.
    """
    time = [now()]
    clock = ReviewClock(queue.sweep, Clock(new_id=new_id, now=lambda: time[0]), 15.0, text_days=1)
    run = await queue.hold(declared=Review(sla_minutes=1, on_expiry="block"))
    await queue.take()
    for later, state in ((timedelta(minutes=2), "leased"), (LEASE, "expired")):
        time[0] += later
        await clock.turn()
        item = await queue.book.find(run.review_id or "")
        assert item is not None
        assert item.state == state
    time[0] += timedelta(days=2)
    await clock.turn()
    assert (await queue.book.question(item, ANN.actor, now())).input is None


async def test_counts_reconcile(queue: Queue) -> None:
    """Held = decided + expired + waiting, in runs, whatever became of each item."""
    declared = Review(sla_minutes=1, on_expiry="block")
    for text in ("a", "a", "b", "c", "c", "c", "d"):
        await queue.hold(text, declared if text == "d" else None)
    for _ in range(2):
        item = await queue.take()
        assert item is not None
        await queue.decide(item, ANN, DELIVER if item.runs > 1 else BLOCK)
    await queue.sweep.expire(now() + timedelta(minutes=2))
    async with queue.database.begin() as connection:
        held_runs = (await connection.execute(select(func.count()).select_from(tables.inference))).scalar_one()
        by_state = select(tables.review_item.c.state, func.sum(tables.review_item.c.runs)).group_by("state")
        counted = {state: int(runs) for state, runs in await connection.execute(by_state)}
    assert held_runs == sum(counted.values()) == 7


async def test_depth_tells_leads_what_waits(queue: Queue) -> None:
    """By task: how many in each state, since when, and what is due soon."""
    first = await queue.hold()
    await queue.hold(declared=Review(sla_minutes=5, on_expiry="block"))
    await queue.take()
    (depth,) = await queue.book.depth(OWNER, now())
    assert (depth.open, depth.leased, depth.escalated, depth.at_risk) == (1, 1, 0, 1)
    assert depth.oldest_at == first.invocation.received_at
    assert await queue.book.depth("other", now()) == []


async def _set(queue: Queue, review_id: str | None, **values: Any) -> None:
    async with queue.database.begin() as connection:
        items = tables.review_item
        await connection.execute(update(items).where(items.c.id == review_id).values(values))


async def _unlink(connection: Any, database: Database) -> None:
    """What the trigger forbids to everybody else."""
    off, on = "DISABLE", "ENABLE"
    if database.postgres:
        await connection.exec_driver_sql(f"ALTER TABLE review {off} TRIGGER review_append_only")
        await connection.exec_driver_sql("UPDATE review SET item_id = NULL")
        await connection.exec_driver_sql(f"ALTER TABLE review {on} TRIGGER review_append_only")
        return
    await connection.exec_driver_sql("DROP TRIGGER review_append_only")
    await connection.exec_driver_sql("UPDATE review SET item_id = NULL")
