"""From runs, audits and judgements to estimates, on both databases."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from stories import held, inference, intent, invocation, new_id, now

from gateway.adapters.raters import NltkRaters
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.fingerprints import SqlFingerprints
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.opinions import SqlOpinions
from gateway.adapters.sql.quality import SqlQuality
from gateway.adapters.sql.review_book import SqlReviewBook
from gateway.adapters.sql.review_labels import SqlReviewLabels
from gateway.adapters.sql.reviews import SqlReviews
from gateway.adapters.sql.samples import SqlSamples
from gateway.core import review_checks, review_rules
from gateway.core.agreement import quality_of
from gateway.core.cache import canonical_json
from gateway.core.inference import Inference, Sample
from gateway.core.quality import report
from gateway.core.review_ports import Filter
from gateway.core.reviews import Item, Outcome, Reviewer, Ruling
from gateway.core.samples import Judged
from gateway.core.task import Review

TASK, OWNER, VERSION = "message-moderation", "trust-and-safety", "0123456789abcdef"
ANN, BEN, CAT = (Reviewer(OWNER, name * 16) for name in "abc")
STAGES = [{"name": "prefilter", "kind": "cnn"}, {"name": "llm", "kind": "chain"}]
UNDO = timedelta(0)


async def judge(
    queue: SqlReviews, review_id: str, by: Reviewer, outcome: Outcome, *policies: str, **declared: Any
) -> Item:
    """Lease, decide, and let follow what the task declares."""
    await queue.change(review_id, lambda i: review_rules.lease(i, by, now(), "t"))
    ruling = Ruling(outcome=outcome, policies=policies)
    return await queue.change(
        review_id,
        lambda i: review_checks.followed(
            review_rules.decide(i, by, now(), "t", ruling, UNDO), Review(**declared), new_id
        ),
    )


def asked(message: str, **changed: Any) -> Any:
    """A request with a text of its own: equal ones would be one item."""
    item = {"message": message}
    return invocation(input=item, canonical=canonical_json(item), **changed)


@pytest.fixture
async def queue(database: Database) -> SqlReviews:
    """The queue, with the version known."""
    declared = {"declaration": {"positive": "violation", "stage": STAGES}}
    await SqlFingerprints(database).remember(VERSION, TASK, declared, now())
    return SqlReviews(database)


async def test_a_period_is_estimated_from_what_was_counted_and_judged(
    database: Database, ledger: SqlLedger, queue: SqlReviews
) -> None:
    """Four held, three of them rightly; ten cleared at once, four drawn, one of these missed: by weights 3 of 5.5."""
    start, made = now(), []
    for i in range(4):
        run = held(asked(f"held {i}"), new_id())
        await ledger.record(run)
        assert run.review_id is not None
        await judge(queue, run.review_id, ANN, "deliver" if i == 0 else "block")
    for i in range(10):
        sample = Sample("llm", 0.4) if i < 4 else None
        made.append(inference(asked(f"clear {i}"), sample=sample))
        await ledger.record(made[-1])
    audits = [
        await _audited(database, ledger, run, "flagged" if i == 0 else "cleared") for i, run in enumerate(made[:4])
    ]
    await judge(queue, audits[0], ANN, "block", "abuse")
    for review_id in audits[1:3]:
        await judge(queue, review_id, ANN, "deliver")
    (row,) = report(await SqlQuality(database).evidence(TASK, start, now()))
    assert (row.fingerprint, row.runs, row.flagged, row.judged, row.open, row.sampled) == (VERSION, 14, 4, 7, 0, 4)
    assert row.precision is not None
    assert row.precision.value == pytest.approx(3 / 4)
    assert row.recall is not None
    assert row.recall.value == pytest.approx(3 / (3 + 2.5))
    assert row.recall.low < row.recall.value < row.recall.high
    assert row.prevalence is not None
    assert row.prevalence.value == pytest.approx(5.5 / 14)
    assert (row.cost_nano, row.audit_nano) == (0, 4 * 48_100)
    assert report(await SqlQuality(database).evidence(TASK, start - timedelta(days=1), start)) == []
    exported = await SqlReviewLabels(database).rows(TASK, start, now() + timedelta(seconds=1), "message")
    weights = sorted((row["kind"], row["label"], round(row["weight"], 6)) for row in exported)
    audits_weigh = [("audit", "clean", 5.0), ("audit", "clean", 5.0), ("audit", "violation", 2.5)]
    assert weights == [*audits_weigh, ("held", "clean", 1.0), *[("held", "violation", 1.0)] * 3]


async def test_a_clock_is_no_judge_and_an_item_weighs_its_runs(
    database: Database, ledger: SqlLedger, queue: SqlReviews
) -> None:
    """What expired says nothing of the machine; what was decided once for three runs says it of three."""
    start = now()
    for _ in range(3):
        await ledger.record(held(asked("the same"), new_id()))
    late = held(asked("late"), new_id())
    await ledger.record(late)
    found = await SqlQuality(database).evidence(TASK, start, now())
    assert sorted((item.runs, item.violation) for item in found.held) == [(1, None), (3, None)]
    (three,) = [i for i in await _items(database) if i.runs == 3]
    await judge(queue, three.id, ANN, "block")
    assert late.review_id is not None
    await queue.change(
        late.review_id, lambda i: review_rules.expire(replace(i, on_expiry="block", due_at=now()), now())
    )
    found = await SqlQuality(database).evidence(TASK, start, now())
    assert sorted((item.runs, item.violation) for item in found.held) == [(1, None), (3, True)]


async def test_opinions_are_read_with_what_they_are_about(
    database: Database, ledger: SqlLedger, queue: SqlReviews
) -> None:
    """A blind second differs, a third settles it; an appeal overturns; a known item is answered wrong."""
    start, run = now(), held(asked("disputed"), new_id())
    await ledger.record(run)
    assert run.review_id is not None
    await judge(queue, run.review_id, ANN, "block", "abuse", second=1.0)
    (second,) = [i for i in await _items(database) if i.kind == "second"]
    await judge(queue, second.id, BEN, "deliver")
    (third,) = [i for i in await _items(database) if i.kind == "third"]
    await judge(queue, third.id, CAT, "block", "abuse")
    await queue.change(run.review_id, lambda i: review_checks.mark_gold(i, CAT.actor, now()))
    gold_id, appeal_id = new_id(), new_id()
    await queue.change(run.review_id, lambda i: review_checks.ask_gold(i, ANN.actor, "d" * 16, now(), gold_id))
    await judge(queue, gold_id, Reviewer(OWNER, "d" * 16), "deliver")
    await queue.change(run.review_id, lambda i: review_checks.appeal(i, ANN.actor, now(), "wrong", appeal_id))
    await judge(queue, appeal_id, Reviewer(OWNER, "e" * 16), "deliver")
    found = await SqlOpinions(database).opinions(TASK, start, now() + timedelta(seconds=1))
    assert {(said.kind, said.key_id[0], said.outcome) for said in found.said} == {
        ("held", "a", "block"), ("second", "b", "deliver"), ("third", "c", "block"), ("gold", "d", "deliver"),
        ("appeal", "e", "deliver"),
    }  # fmt: skip
    assert [(each.policies, each.overturned) for each in found.appeals] == [(("off_platform",), True)]
    people = quality_of(found, NltkRaters())
    assert {each.key_id[0]: each.upheld.value for each in people.reviewers if each.upheld} == {"a": 1.0, "b": 0.0}
    assert {pair.about: pair.agreed.value for pair in people.pairs} == {"outcome": 0.0, "abuse": 0.0}
    nothing = await SqlOpinions(database).opinions(TASK, start - timedelta(days=2), start)
    assert (nothing.said, nothing.appeals) == ([], [])


async def _audited(database: Database, ledger: SqlLedger, run: Inference, verdict: Any) -> str:
    """The sample's audit is recorded, and people are asked: the review's id."""
    asks = invocation(kind="audit", parent_id=run.id)
    await ledger.record(audit := inference(asks, intent(asks)))
    (drawn,) = [d for d in await SqlSamples(database).claim(now(), now(), 100) if d.id == run.id]
    at, id_ = now(), new_id()
    question = Item(
        id=id_, kind="audit", root_id=id_, task=TASK, caller_team="acme", owner_team=OWNER, fingerprint=VERSION,
        stage="prefilter", created_at=at, due_at=at + timedelta(hours=1), rank_at=at,
    )  # fmt: skip
    judged = Judged(
        verdict=verdict, audit_id=audit.id, people_probability=1.0 if verdict == "flagged" else 0.5, question=question
    )
    await SqlSamples(database).settle(drawn, judged)
    return id_


async def _items(database: Database) -> list[Item]:
    return list(await SqlReviewBook(database).listed(Filter(task=TASK)))
