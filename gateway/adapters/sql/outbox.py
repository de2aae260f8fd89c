"""The outbox over SQL: messages are written with the outcomes that they tell of, and sent by whoever claims them."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import uuid_utils
from sqlalchemy import RowMapping, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import inference, review, webhook, webhook_message
from gateway.core.audit import TERMINAL
from gateway.core.errors import NotFound
from gateway.core.reviews import Event, Item
from gateway.core.webhooks import RUNS_AT_ONCE, Message, MessageStatus, ToldRun, Webhook, outcome_body

_message = webhook_message.c


class SqlOutbox:
    """Core's Outbox, and what people at a terminal do with it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self, now: datetime, until: datetime, limit: int, without: Collection[str] = ()
    ) -> Sequence[tuple[Message, Webhook | None]]:
        """Messages that are due, but for those of the teams `without`, with where they go; nobody else claims them
        before `until`. Raises Unavailable.
        """
        due = select(_message.id).where(_message.status == "pending", _message.due_at <= now)
        if without:
            due = due.where(_message.team.not_in(without))
        some = due.order_by(_message.due_at).limit(limit).with_for_update(skip_locked=True)
        claim = (
            update(webhook_message)
            .where(_message.id.in_(some))
            .values(due_at=until, attempts=_message.attempts + 1)
            .returning(*_message)
        )
        async with self._database.begin() as connection:
            messages = [_of_row(row) for row in (await connection.execute(claim)).mappings()]
            teams = {message.team for message in messages}
            rows = (await connection.execute(select(webhook).where(webhook.c.team.in_(teams)))).mappings()
            to = {row["team"]: Webhook(**row) for row in rows}
        return [(message, to.get(message.team)) for message in messages]

    async def delivered(self, message: Message, now: datetime) -> None:
        """The receiver has it. Raises Unavailable."""
        await self._set(message.id, status="delivered", delivered_at=now, error=None)

    async def failed(self, message: Message, error: str, again_at: datetime | None) -> None:
        """It is due again, or dead where `again_at` is None. Raises Unavailable."""
        left: dict[str, Any] = {"status": "dead"} if again_at is None else {"due_at": again_at}
        await self._set(message.id, error=error, **left)

    async def listed(self, status: MessageStatus | None, limit: int) -> Sequence[Message]:
        """The newest first. Raises Unavailable."""
        query = select(webhook_message).order_by(_message.id.desc()).limit(limit)
        if status is not None:
            query = query.where(_message.status == status)
        async with self._database.begin() as connection:
            return [_of_row(row) for row in (await connection.execute(query)).mappings()]

    async def replay(self, now: datetime, ids: Sequence[str], team: str | None = None) -> int:
        """Send again, with the ids that they had: these, or without any, everything that is dead (of a team).

        Raises NotFound, having changed nothing, where one of the ids is no message that could be sent; Unavailable.
        """
        chosen = _message.id.in_(ids) if ids else _message.status == "dead"
        again = update(webhook_message).where(chosen, _message.status != "cancelled")
        if team is not None:
            again = again.where(_message.team == team)
        async with self._database.begin() as connection:
            revived = again.values(status="pending", due_at=now, attempts=0).returning(_message.team)
            counts = Counter((await connection.execute(revived)).scalars())
            if counts.total() < len(ids):
                raise NotFound("Not all of these are messages that could be sent again.")
            for name, count in counts.items():
                await note(connection, TERMINAL, "webhooks_replayed", name, now, messages=count)
        return counts.total()

    async def _set(self, id_: str, **values: Any) -> None:
        async with self._database.begin() as connection:
            await connection.execute(update(webhook_message).where(_message.id == id_).values(values))


async def tell(connection: AsyncConnection, item: Item, event: Event) -> None:
    """Leave messages to the caller of an item, one for so many of its runs. A team without a webhook gets none."""
    there = select(webhook.c.team).where(webhook.c.team == item.caller_team)
    if (await connection.execute(there)).first() is None:
        return
    runs = await _runs(connection, item)
    for start in range(0, len(runs), RUNS_AT_ONCE):
        row = {
            "id": str(uuid_utils.uuid7()),
            "team": item.caller_team,
            "review_id": item.id,
            "body": outcome_body(item, event, runs[start : start + RUNS_AT_ONCE]),
            "status": "pending",
            "attempts": 0,
            "due_at": max(item.undo_until or event.at, event.at),
            "created_at": event.at,
        }
        await connection.execute(insert(webhook_message).values(row))


async def untell(connection: AsyncConnection, item: Item) -> None:
    """Nobody will hear what nobody was told yet. What was sent already is amended by the next outcome."""
    mine = (_message.review_id == item.id, _message.status == "pending", _message.attempts == 0)
    await connection.execute(update(webhook_message).where(*mine).values(status="cancelled"))


async def _runs(connection: AsyncConnection, item: Item) -> list[ToldRun]:
    query = (
        select(review.c.inference_id, review.c.id, inference.c.item_id, review.c.thread_id)
        .select_from(review.outerjoin(inference, inference.c.id == review.c.inference_id))
        .where(or_(review.c.item_id == item.id, review.c.id == item.id))
        .order_by(review.c.id)
    )
    return [ToldRun(*row) for row in await connection.execute(query)]


def _of_row(row: RowMapping) -> Message:
    return Message(**row)
