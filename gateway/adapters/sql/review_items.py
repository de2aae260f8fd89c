"""Rows of the queue: to and from core's Item and Event, and the one way in which either is written."""

from typing import Any

import msgspec
import uuid_utils
from msgspec import structs
from sqlalchemy import RowMapping, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.tables import review, review_event, review_item, review_note
from gateway.core.audit import Actor
from gateway.core.reviews import Decided, Event, Item

_ITEM = Item.__struct_fields__


def item_of_row(row: RowMapping | dict[str, Any]) -> Item:
    """A row of `review_item`."""
    values = {name: row[name] for name in _ITEM}
    values["barred"] = tuple(values["barred"].split())
    values["policies"] = tuple(values["policies"] or ())
    values["decision"] = msgspec.convert(values["decision"], Decided) if values["decision"] else None
    return Item(**values)


def row_of_item(item: Item) -> dict[str, Any]:
    """The values of `review_item`."""
    decision = msgspec.to_builtins(item.decision) if item.decision else None
    policies = list(item.policies) or None
    return {**structs.asdict(item), "barred": " ".join(item.barred), "policies": policies, "decision": decision}


def event_of_row(row: RowMapping) -> Event:
    """A row of `review_event` with its note, if there is one."""
    detail = dict(row["detail"])
    if row["note"] is not None:
        detail["note"] = row["note"]
    return Event(
        review_id=row["review_id"],
        position=row["position"],
        event=row["event"],
        actor=Actor(row["actor_team"], row["actor_key_id"]),
        at=row["created_at"],
        before=detail.pop("before"),
        after=detail.pop("after"),
        fingerprint=detail.pop("fingerprint"),
        detail=detail,
    )


async def lock(connection: AsyncConnection, *where: Any) -> list[Item]:
    """The items, which nobody else changes before this transaction ends. An UPDATE: SQLite knows no other lock."""
    query = update(review_item).where(*where).values(position=review_item.c.position).returning(*review_item.c)
    return [item_of_row(row) for row in (await connection.execute(query)).mappings()]


async def save(connection: AsyncConnection, before: Item, after: Item, event: Event) -> None:
    """Write an item that is locked, and the event that made it so."""
    old, new = row_of_item(before), row_of_item(after)
    changed = {name: value for name, value in new.items() if value != old[name]}
    await connection.execute(update(review_item).where(review_item.c.id == after.id).values(changed))
    await append(connection, event)


async def append(connection: AsyncConnection, event: Event) -> None:
    """Write an event, and apart from it its note. A position that is taken is an IntegrityError: the item was not
    locked.
    """
    detail = {"before": event.before, "after": event.after, "fingerprint": event.fingerprint, **event.detail}
    note = detail.pop("note", None)
    row = {
        "id": str(uuid_utils.uuid7()),
        "review_id": event.review_id,
        "position": event.position,
        "event": event.event,
        "actor_team": event.actor.team,
        "actor_key_id": event.actor.key_id,
        "detail": detail,
        "created_at": event.at,
    }
    await connection.execute(insert(review_event).values(row))
    if note is not None:
        said = {"event_id": row["id"], "review_id": event.review_id, "note": note, "created_at": event.at}
        await connection.execute(insert(review_note).values(said))


async def ask(connection: AsyncConnection, item: Item) -> None:
    """A question about a root, which says what the root's review says."""
    said = {column.name: column for column in review.c}
    given: dict[str, Any] = {"id": item.id, "item_id": item.id, "created_at": item.created_at, "due_at": item.due_at}
    columns = [literal(given[name], column.type) if name in given else column for name, column in said.items()]
    copied = select(*columns).where(review.c.id == item.root_id)
    await connection.execute(insert(review).from_select(list(said), copied))
    await connection.execute(insert(review_item).values(row_of_item(item)))
