"""What there is to read of reviews, over SQL. Reading a text is an act of its own, and is written down."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.review_items import event_of_row, item_of_row
from gateway.adapters.sql.tables import attempt, review, review_event, review_item, review_note, review_text
from gateway.core.audit import Actor
from gateway.core.review_ports import Depth, Filter, Question, RunOutcome
from gateway.core.reviews import Event, Item

AT_RISK = timedelta(minutes=15)
_item = review_item.c


class SqlReviewBook:
    """Core's ReviewBook."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, review_id: str) -> Item | None:
        """The item of that id, or the one that the run with that review id joined. Raises Unavailable."""
        if (id_ := _parse(review_id)) is None:
            return None
        joined = select(review.c.item_id).where(review.c.id == id_).scalar_subquery()
        query = select(review_item).where(_item.id.in_((id_, joined))).order_by(_item.id == id_)
        async with self._database.begin() as connection:
            row = (await connection.execute(query.limit(1))).mappings().first()
        return item_of_row(row) if row is not None else None

    async def question(self, item: Item, by: Actor, now: datetime) -> Question:
        """What is judged; that it was read is in the audit log. Raises Unavailable."""
        async with self._database.begin() as connection:
            await note(connection, by, "review_read", item.id, now)
            said = select(review).where(review.c.id == item.root_id)
            root = (await connection.execute(said)).mappings().one()
            return Question(
                input=await _text(connection, item.root_id),
                label=root["label"],
                reason=root["reason"],
                thread_id=root["thread_id"],
                stages=await _stages(connection, root["inference_id"]),
            )

    async def history(self, review_id: str) -> Sequence[Event]:
        """Its life so far, oldest first. Raises Unavailable."""
        noted = review_event.outerjoin(review_note, review_note.c.event_id == review_event.c.id)
        query = select(review_event, review_note.c.note).select_from(noted)
        query = query.where(review_event.c.review_id == review_id).order_by(review_event.c.position)
        async with self._database.begin() as connection:
            return [event_of_row(row) for row in (await connection.execute(query)).mappings()]

    async def listed(self, wanted: Filter) -> Sequence[Item]:
        """Items of every kind. Raises Unavailable."""
        query = select(review_item).order_by(_item.id.desc()).limit(wanted.limit)
        for column in ("owner_team", "task", "state", "lease_key"):
            if (value := getattr(wanted, column)) is not None:
                query = query.where(_item[column] == value)
        if wanted.before is not None:
            query = query.where(_item.id < wanted.before)
        async with self._database.begin() as connection:
            return [item_of_row(row) for row in (await connection.execute(query)).mappings()]

    async def depth(self, owner_team: str, now: datetime) -> Sequence[Depth]:
        """The queues of a team's tasks, by task. Raises Unavailable."""
        states = ("open", "leased", "escalated")
        counts = [func.count(case((_item.state == state, 1))).label(state) for state in states]
        late = func.count(case(((_item.due_at <= now + AT_RISK) & _item.on_expiry.is_not(None), 1))).label("at_risk")
        query = (
            select(_item.task, *counts, func.min(_item.created_at).label("oldest_at"), late)
            .where(_item.owner_team == owner_team, _item.state.in_(states))
            .group_by(_item.task)
            .order_by(_item.task)
        )
        async with self._database.begin() as connection:
            return [Depth(**row) for row in (await connection.execute(query)).mappings()]

    async def outcome(self, review_id: str, now: datetime) -> RunOutcome | None:
        """What became of the run that has this review id. Raises Unavailable."""
        if (item := await self.find(review_id)) is None:
            return None
        decided = item.decision if item.outcome is not None else None
        return RunOutcome(
            review_id=item.id,
            state=item.state,
            outcome=item.outcome,
            policies=decided.policies if decided else (),
            reason=decided.reason if decided else None,
            decided_at=item.decided_at,
            due_at=item.due_at,
            revision=item.decision.revision if item.decision else 0,
            runs=item.runs,
            final=item.outcome is not None and (item.undo_until is None or item.undo_until <= now),
        )


async def _text(connection: AsyncConnection, root_id: str) -> Mapping[str, Any] | None:
    """The text of any run that put the question: they are the same; those of a person who asked may be erased."""
    query = (
        select(review_text.c.input)
        .join(review, review.c.id == review_text.c.review_id)
        .where(or_(review.c.item_id == root_id, review.c.id == root_id))
        .limit(1)
    )
    found = (await connection.execute(query)).scalar()
    text: Mapping[str, Any] | None = msgspec.json.decode(found) if found is not None else None
    return text


async def _stages(connection: AsyncConnection, inference_id: str) -> tuple[Mapping[str, Any], ...]:
    shown = ("stage", "stage_kind", "outcome", "label", "score", "reason", "matched")
    columns = [attempt.c[name] for name in shown]
    query = select(*columns).where(attempt.c.inference_id == inference_id).order_by(attempt.c.position)
    return tuple(dict(row) for row in (await connection.execute(query)).mappings())


def _parse(review_id: str) -> str | None:
    try:
        return str(UUID(review_id))
    except ValueError:
        return None
