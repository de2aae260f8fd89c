"""The queue over SQL: one locked row per item, and everything that a change says in one transaction."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import structs
from sqlalchemy import ColumnElement, Select, and_, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.outbox import tell, untell
from gateway.adapters.sql.review_items import ask, item_of_row, lock, row_of_item, save
from gateway.adapters.sql.tables import review, review_item, review_text
from gateway.core.errors import NotFound
from gateway.core.holds import nearly_same
from gateway.core.review_rules import hold, lapse, lease, withdraw
from gateway.core.reviews import CLOCK, LEASE, LEASES, Change, Item, Reviewer, Rule

_item = review_item.c


class SqlReviews:
    """Core's ReviewQueue."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(
        self,
        by: Reviewer,
        now: datetime,
        token: str,
        task: str | None = None,
        *,
        escalated: bool = False,
        lasting: timedelta = LEASE,
    ) -> Item | None:
        """Lease the first in the queue that this reviewer may judge; None where there is none, or the reviewer has
        LEASES already. Raises Unavailable.

        Reviewers do not wait for each other: what one is taking, the next one passes by.
        """
        first = _takeable(by, now, escalated)
        if task is not None:
            first = first.where(_item.task == task)
        first = first.order_by(_item.rank_at, _item.id).limit(1).with_for_update(skip_locked=True)
        async with self._database.begin() as connection:
            found = await lock(connection, _item.id == first.scalar_subquery())
            if not found:
                return None
            item = found[0]
            if item.state == "leased":
                item = await write(connection, item, lapse(item, now))
            return await write(connection, item, lease(item, by, now, token, lasting))

    async def known(self, by: Reviewer, task: str) -> Item | None:
        """A known item of the task that this reviewer has not judged. Raises Unavailable."""
        mine = (_item.gold, _item.owner_team == by.team, _item.task == task, _not_barred(by))
        query = select(review_item).where(*mine).order_by(_item.id).limit(1)
        async with self._database.begin() as connection:
            row = (await connection.execute(query)).mappings().first()
        return item_of_row(row) if row is not None else None

    async def change(self, review_id: str, rule: Rule) -> Item:
        """Lock the item, apply the rule, and write all that it says. Raises what the rule raises; NotFound,
        Unavailable.
        """
        async with self._database.begin() as connection:
            found = await lock(connection, _item.id == review_id)
            if not found:
                raise NotFound("There is no such review.")
            return await write(connection, found[0], rule(found[0]))

    async def change_some(self, where: ColumnElement[bool], rule: Rule, limit: int) -> int:
        """The rule on up to `limit` items that nobody is changing now: how many. Raises Unavailable."""
        some = select(_item.id).where(where).order_by(_item.id).limit(limit).with_for_update(skip_locked=True)
        async with self._database.begin() as connection:
            found = await lock(connection, _item.id.in_(some))
            for item in found:
                await write(connection, item, rule(item))
        return len(found)

    async def put(self, item: Item, inference_id: str, input: Mapping[str, Any], subject_id: str | None) -> None:
        """A question that is its own root, such as a sampled one, with its text. Raises Unavailable."""
        async with self._database.begin() as connection:
            await put(connection, item, inference_id, input, subject_id)


async def put(
    connection: AsyncConnection, item: Item, inference_id: str, input: Mapping[str, Any], subject_id: str | None
) -> None:
    """Write a question that is its own root."""
    values = structs.asdict(item)
    said = {
        **{name: value for name, value in values.items() if name in review.c},
        "inference_id": inference_id,
        "input_hash": b"",
        "status": "accepted",
        "item_id": item.id,
        "subject_id": subject_id,
        "policies": list(item.policies) or None,
    }
    text = msgspec.json.encode(input).decode()
    row = {"review_id": item.id, "subject_id": subject_id, "input": text, "created_at": item.created_at}
    await connection.execute(insert(review).values(said))
    await connection.execute(insert(review_text).values(row))
    await connection.execute(insert(review_item).values(row_of_item(item)))


async def write(connection: AsyncConnection, before: Item, change: Change) -> Item:
    """Everything that a change of a locked item says: the item as it is now."""
    item, event = change.item, change.event
    await save(connection, before, item, event)
    for question in change.ask:
        await ask(connection, question)
    if change.on_root is not None:
        (root,) = await lock(connection, _item.id == item.root_id)
        await write(connection, root, change.on_root(root))
    if change.tell:
        await tell(connection, item, event)
    if change.untell:
        await untell(connection, item)
        about = and_(_item.root_id == item.id, _item.kind.in_(("second", "third")), _item.state == "open")
        await _write_free(connection, about, lambda each: withdraw(each, CLOCK, event.at, "undone"))
    if change.hold_near and item.near is not None:
        await _hold_near(connection, item, item.near, event.at)
    return item


async def change_all(connection: AsyncConnection, where: ColumnElement[bool], rule: Rule) -> int:
    """The rule on every such item, in the caller's transaction: how many."""
    found = await lock(connection, where)
    for item in found:
        await write(connection, item, rule(item))
    return len(found)


async def _hold_near(connection: AsyncConnection, item: Item, near: int, at: datetime) -> None:
    """What reads almost like a blocked item is not delivered by a clock. Nothing is ever delivered for its likeness."""
    alike = and_(
        _item.task == item.task,
        _item.caller_team == item.caller_team,
        _item.state == "open",
        _item.on_expiry == "deliver",
    )
    rows = await connection.execute(select(_item.id, _item.near).where(alike, _item.near.is_not(None)))
    ids = [id_ for id_, other in rows if nearly_same(near, other)]
    if ids:
        await _write_free(connection, _item.id.in_(ids), lambda each: hold(each, at, item.id))


async def _write_free(connection: AsyncConnection, where: ColumnElement[bool], rule: Callable[[Item], Change]) -> None:
    """The rule on those that nobody else is changing: who holds one item never waits for another of its rank."""
    free = select(_item.id).where(where).with_for_update(skip_locked=True)
    for other in await lock(connection, _item.id.in_(free)):
        await write(connection, other, rule(other))


def _takeable(by: Reviewer, now: datetime, escalated: bool) -> Select[tuple[str]]:
    """Core's `takeable`, asked of rows."""
    lapsed = and_(_item.state == "leased", _item.lease_until <= now)
    free = or_(_item.state == ("escalated" if escalated else "open"), lapsed)
    may = (_item.owner_team == by.team, _item.escalated.is_(escalated), _not_barred(by), _has_room(by, now))
    return select(_item.id).where(free, *may)


def _has_room(by: Reviewer, now: datetime) -> ColumnElement[bool]:
    held = review_item.alias("held").c
    mine = (held.owner_team == by.team, held.state == "leased", held.lease_key == by.key_id, held.lease_until > now)
    return select(func.count()).where(*mine).scalar_subquery() < LEASES


def _not_barred(by: Reviewer) -> ColumnElement[bool]:
    return _item.barred.not_like(f"%{by.key_id}%")
