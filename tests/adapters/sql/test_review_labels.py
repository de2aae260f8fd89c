"""Labels that people gave, exported for the lab; texts of a person, erased. On both databases."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from held_queue import ANN, BLOCK, DELIVER, Queue
from stories import inference, invocation, new_id, now

from gateway.adapters.exports import write_labels
from gateway.adapters.sql.audit import SqlAudit
from gateway.adapters.sql.privacy import erase
from gateway.adapters.sql.review_labels import SqlReviewLabels
from gateway.adapters.sql.runs import SqlRuns
from gateway.core.errors import Conflict
from gateway.core.inference import Attribution
from gateway.core.review_checks import appeal
from gateway.core.review_ports import Filter
from gateway.core.reviews import Ruling
from gateway.core.task import Review
from gateway.lab.files import read_file

START = datetime(2000, 1, 1, tzinfo=UTC)


async def _decided(queue: Queue) -> None:
    for text, ruling in (("pay me outside", BLOCK), ("see you on Tuesday", DELIVER)):
        await queue.hold(text)
        item = await queue.take()
        assert item is not None
        await queue.decide(item, ANN, ruling)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
async def test_what_people_decided_is_what_the_lab_reads(queue: Queue, tmp_path: Path, suffix: str) -> None:
    """Text, label and policy come back through the lab's own reader; what a clock settled is no label."""
    await _decided(queue)
    await queue.hold("nobody looked", Review(sla_minutes=1, on_expiry="block"))
    await queue.sweep.expire(now() + timedelta(minutes=2))
    rows = await SqlReviewLabels(queue.database).rows("message-moderation", START, now(), "message")
    file = tmp_path / f"labels{suffix}"
    if suffix == ".jsonl":
        file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    else:
        write_labels(rows, file)
    read = read_file(file)
    assert [(row.text, row.label, row.policy, row.source) for row in read] == [
        ("pay me outside", "violation", "off_platform", "reviews"),
        ("see you on Tuesday", "clean", None, "reviews"),
    ]
    assert [(row["weight"], row["agrees"], row["machine_score"]) for row in rows] == [
        (1.0, "right", 0.93),
        (1.0, "wrong_action", 0.93),
    ]
    acts = await SqlAudit(queue.database).latest(1)
    assert (acts[0].act, acts[0].detail["rows"]) == ("reviews_exported", 2)


async def test_a_persons_texts_are_erased_and_the_ledger_stays(queue: Queue) -> None:
    """What others sent too can still be judged; what only that person sent is withdrawn, stays undelivered, and its
    sender is told. The lease of whoever had it is stale.
    """
    await queue.webhook()
    mine, other = (Attribution(subject_id=subject) for subject in ("person-1", "person-2"))
    alone = await queue.hold("only mine", attribution=mine)
    shared = [await queue.hold("said by both", attribution=each) for each in (mine, other)]
    held = {item.id: item for item in (await queue.take(), await queue.take()) if item}
    erased = await erase(queue.database, "person-1", now())
    assert (erased.texts, erased.withdrawn) == (2, 1)
    items = {item.id: item for item in await queue.book.listed(Filter())}
    assert (items[alone.review_id or ""].state, items[alone.review_id or ""].outcome) == ("withdrawn", "block")
    assert items[shared[0].review_id or ""].state == "leased"
    left = await queue.book.question(items[shared[0].review_id or ""], ANN.actor, now())
    assert left.input == {"message": "said by both"}
    with pytest.raises(Conflict):
        await queue.decide(held[alone.review_id or ""], ANN, BLOCK)
    (told,) = await queue.told()
    assert (told["type"], told["data"]["reason"]) == ("review.withdrawn", "erased")
    run = await SqlRuns(queue.database).find(alone.id)
    assert run is not None
    acts = [act for act in await SqlAudit(queue.database).latest(20) if act.act == "subject_erased"]
    assert len(acts) == 1
    assert "person-1" not in repr(acts)


async def test_what_people_wrote_about_an_erased_text_goes_too(queue: Queue) -> None:
    """Notes of reviewers and words of an appeal may repeat the text: the steps stay, their words do not; those about
    others do.
    """
    note = Ruling(outcome="block", policies=("off_platform",), note="he wrote: my number is 0170")
    for subject in ("person-1", "person-2"):
        await queue.hold(f"text of {subject}", attribution=Attribution(subject_id=subject))
    items = [await queue.decide(item, ANN, note) for item in (await queue.take(), await queue.take()) if item]
    for item in items:
        await queue.reviews.change(item.id, lambda i: appeal(i, ANN.actor, now(), "my number is 0170", new_id()))
    before = [[event.event for event in await queue.book.history(item.id)] for item in items]
    await erase(queue.database, "person-1", now())
    lives = [await queue.book.history(item.id) for item in items]
    assert [[event.event for event in life] for life in lives] == before
    assert sorted(repr(life).count("0170") for life in lives) == [0, 2]


async def test_a_kept_answer_of_an_erased_person_is_forgotten(queue: Queue) -> None:
    """What an Idempotency-Key would repeat goes too."""
    asked = invocation(idempotency_key="k", attribution=Attribution(subject_id="person-1"))
    await queue.ledger.record(inference(asked))
    assert (await erase(queue.database, "person-1", now())).answers == 1
