"""What time does to rows of the queue, and reviews that came without a row."""

from datetime import datetime, timedelta

from sqlalchemy import RowMapping, and_, delete, insert, or_, select

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.partitions import first_id
from gateway.adapters.sql.review_items import row_of_item
from gateway.adapters.sql.reviews import SqlReviews
from gateway.adapters.sql.tables import review, review_item, review_note, review_text
from gateway.core import review_rules
from gateway.core.reviews import WAITING, Item, rank_of, risk_of

_AT_ONCE = 200
# What old code held had no deadline; this one only ranks it.
_RANKED_AS_DUE = timedelta(hours=1)
_item = review_item.c


class SqlReviewSweep:
    """Core's Timed."""

    def __init__(self, database: Database) -> None:
        self._database, self._reviews = database, SqlReviews(database)

    async def adopt(self, since: datetime | None) -> int:
        """Give an item to reviews that have none, since replicas with the old code wrote them. Raises Unavailable."""
        orphan = review.outerjoin(review_item, _item.id == review.c.id)
        query = select(review).select_from(orphan).where(review.c.item_id.is_(None), _item.id.is_(None))
        if since is not None:
            query = query.where(review.c.id >= first_id(since))
        async with self._database.begin() as connection:
            rows = (await connection.execute(query.limit(_AT_ONCE))).mappings().all()
            for row in rows:
                await connection.execute(insert(review_item).values(row_of_item(_adopted(row))))
        return len(rows)

    async def lapse(self, now: datetime) -> int:
        """Leases that have ended: their items return to the queue. Raises Unavailable."""
        ended = and_(_item.state == "leased", _item.lease_until <= now)
        return await self._reviews.change_some(ended, lambda item: review_rules.lapse(item, now), _AT_ONCE)

    async def expire(self, now: datetime) -> int:
        """Deadlines that have passed: what the task declared happens, once. Raises Unavailable."""
        passed = and_(_item.state == "open", _item.due_at <= now, _item.on_expiry.is_not(None))
        return await self._reviews.change_some(passed, lambda item: review_rules.expire(item, now), _AT_ONCE)

    async def forget_texts(self, before: datetime) -> int:
        """Texts and notes older than that of items that are settled. Raises Unavailable."""
        waiting = _item.state.in_(WAITING)
        asked = select(_item.root_id).where(waiting)
        about = select(review.c.id).where(or_(review.c.item_id.in_(asked), review.c.id.in_(asked)))
        async with self._database.begin() as connection:
            gone = [
                await connection.execute(
                    delete(table).where(table.c.created_at < before, table.c.review_id.not_in(about))
                )
                for table in (review_text, review_note)
            ]
        return sum(each.rowcount for each in gone)


def _adopted(row: RowMapping) -> Item:
    """The machine's error may have held it, so no clock settles it; nothing joins it."""
    due_at = row["due_at"] or row["created_at"] + _RANKED_AS_DUE
    return Item(
        id=row["id"],
        kind="held",
        root_id=row["id"],
        task=row["task"],
        caller_team=row["caller_team"],
        owner_team=row["owner_team"],
        fingerprint=row["fingerprint"],
        severity=row["severity"],
        score=row["score"],
        policies=tuple(row["policies"] or ()),
        stage=row["stage"],
        recommended="block" if row["status"] == "accepted" else None,
        created_at=row["created_at"],
        due_at=due_at,
        rank_at=rank_of(row["created_at"], due_at, risk_of(row["severity"], row["score"])),
    )
