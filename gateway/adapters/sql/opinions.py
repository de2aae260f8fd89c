"""What reviewers said, over SQL: of questions judged in a period, with all that their roots went through."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, and_, select

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import review_event, review_item
from gateway.core.agreement import Appealed, Opinion, Opinions
from gateway.core.reviews import Outcome

_item, _event = review_item.c, review_event.c
_AGAIN = ("second", "third", "gold", "appeal")


class SqlOpinions:
    """Core's PeopleBook."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def opinions(self, task: str, start: datetime, end: datetime) -> Opinions:
        """Second opinions, thirds, gold answers and appeals judged in [start, end), with what they are about.

        Raises Unavailable.
        """
        judged = (_item.task == task, _item.kind.in_(_AGAIN), _item.decided_at >= start, _item.decided_at < end)
        about = _event.event.in_(("decided", "upheld", "overturned"))
        query = (
            select(
                *(_item[name] for name in ("id", "kind", "root_id", "state", "outcome", "policies", "stage", "gold")),
                *(_event[name] for name in ("event", "actor_key_id", "detail", "created_at")),
            )
            .select_from(review_item.outerjoin(review_event, and_(_event.review_id == _item.id, about)))
            .where(_item.root_id.in_(select(_item.root_id).where(*judged)))
            .order_by(_item.id, _event.position)
        )
        async with self._database.begin() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return Opinions(
            said=_said(rows),
            known={row["id"]: row["outcome"] for row in rows if row["gold"] and row["outcome"] is not None},
            appeals=_appeals(rows, start, end),
        )


def _said(rows: Sequence[RowMapping]) -> list[Opinion]:
    """What each reviewer said last of a question: decisions that were undone do not count."""
    last: dict[str, Opinion] = {}
    for row in rows:
        if row["event"] == "decided" and row["state"] == "decided":
            detail = row["detail"]
            outcome: Outcome = detail["outcome"]
            policies = frozenset(detail["policies"])
            last[row["id"]] = Opinion(row["root_id"], row["kind"], row["actor_key_id"], outcome, policies)
    return list(last.values())


def _appeals(rows: Sequence[RowMapping], start: datetime, end: datetime) -> list[Appealed]:
    """Roots on which an appeal was judged in the period."""
    return [
        Appealed(tuple(row["policies"] or ()), row["stage"], row["event"] == "overturned")
        for row in rows
        if row["event"] in ("upheld", "overturned")
        and row["detail"].get("cause") == "appeal"
        and start <= row["created_at"] < end
    ]
