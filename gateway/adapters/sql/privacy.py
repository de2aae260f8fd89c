"""Erasure by person: their texts go, with what was noted on them; the ledger stays as it is."""

import hashlib
from datetime import datetime

from msgspec import Struct
from sqlalchemy import delete, func, or_, select, update

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.reviews import change_all
from gateway.adapters.sql.tables import (
    audit_sample,
    idempotency,
    inference,
    review,
    review_item,
    review_note,
    review_text,
)
from gateway.core.audit import TERMINAL, Actor
from gateway.core.review_rules import withdraw
from gateway.core.reviews import WAITING


class Erased(Struct, frozen=True):
    """How many texts and kept answers went, and how many questions ended since nothing of them is left to read."""

    texts: int
    answers: int
    withdrawn: int


async def erase(database: Database, subject_id: str, now: datetime, by: Actor = TERMINAL) -> Erased:
    """Remove every text of a person, and every note on one. What waits for a judgement that nobody can make any more is
    withdrawn, and stays undelivered. The audit log names the person by a hash. Raises Unavailable.
    """
    of_subject = select(inference.c.id).where(inference.c.subject_id == subject_id)
    async with database.begin() as connection:
        gone = delete(review_text).where(review_text.c.subject_id == subject_id).returning(review_text.c.review_id)
        texts = list((await connection.execute(gone)).scalars())
        judged = select(func.coalesce(review.c.item_id, review.c.id)).where(review.c.subject_id == subject_id)
        await connection.execute(delete(review_note).where(review_note.c.review_id.in_(judged)))
        sampled = (audit_sample.c.subject_id == subject_id, audit_sample.c.input.is_not(None))
        waits = await connection.execute(update(audit_sample).where(*sampled).values(input=None))
        kept = await connection.execute(delete(idempotency).where(idempotency.c.inference_id.in_(of_subject)))
        roots = select(review.c.item_id).where(review.c.id.in_(texts), review.c.item_id.is_not(None))
        readable = select(review.c.item_id).join(review_text, review_text.c.review_id == review.c.id)
        about = or_(review_item.c.root_id.in_(roots), review_item.c.root_id.in_(texts))
        unreadable = review_item.c.root_id.not_in(readable.where(review.c.item_id.is_not(None)))
        waiting = review_item.c.state.in_(WAITING)
        withdrawn = await change_all(
            connection, about & unreadable & waiting, lambda item: withdraw(item, by, now, "erased")
        )
        erased = Erased(len(texts) + waits.rowcount, kept.rowcount, withdrawn)
        hashed = hashlib.sha256(subject_id.encode()).hexdigest()[:16]
        await note(
            connection, by, "subject_erased", hashed, now,
            texts=erased.texts, answers=erased.answers, withdrawn=withdrawn,
        )  # fmt: skip
    return erased
