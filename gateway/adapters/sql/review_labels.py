"""What people decided, as labelled rows: the form that the lab reads, with weights and where each label comes from."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import RowMapping, or_, select

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import audit_sample, review, review_item, review_text
from gateway.core.audit import TERMINAL, Actor

_item = review_item.c


class SqlReviewLabels:
    """Decisions of people whose item's text is still kept. What a clock settled is no label."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rows(
        self, task: str, start: datetime, end: datetime, text: str, by: Actor = TERMINAL
    ) -> Sequence[Mapping[str, Any]]:
        """Rows decided in [start, end), oldest first; `text` is the field of the input that is labelled. That they were
        read is in the audit log. Raises Unavailable.
        """
        asked = or_(review.c.item_id == _item.id, review.c.id == _item.id)
        query = (
            select(
                review_item,
                review_text.c.input,
                review.c.input_hash,
                review.c.label,
                audit_sample.c.probability,
                audit_sample.c.people_probability,
            )
            .join(review, asked)
            .outerjoin(audit_sample, audit_sample.c.review_id == _item.id)
            .join(review_text, review_text.c.review_id == review.c.id)
            .where(_item.task == task, _item.state == "decided", _item.kind.in_(("held", "audit")))
            .where(_item.decided_at >= start, _item.decided_at < end, _item.decision.is_not(None))
            .order_by(_item.decided_at, _item.id, review.c.id)
        )
        found: dict[str, Mapping[str, Any]] = {}
        async with self._database.begin() as connection:
            for row in (await connection.execute(query)).mappings():
                if row["id"] not in found and (labelled := _labelled(row, text)) is not None:
                    found[row["id"]] = labelled
            await note(connection, by, "reviews_exported", task, datetime.now(end.tzinfo), rows=len(found))
        return list(found.values())


def _labelled(row: RowMapping, text: str) -> Mapping[str, Any] | None:
    asked = msgspec.json.decode(row["input"])
    decided = row["decision"]
    if not isinstance(asked.get(text), str) or not asked[text]:
        return None
    violation = row["outcome"] == "block"
    return {
        "text": asked[text],
        "label": "violation" if violation else "clean",
        "policy": next(iter(decided["policies"]), None) if violation else None,
        "group": bytes(row["input_hash"]).hex()[:32] or row["id"],
        "sender_role": asked.get("sender_role"),
        "id": row["id"],
        "source": "reviews",
        "weight": _weight(row),
        "task": row["task"],
        "kind": row["kind"],
        "fingerprint": row["fingerprint"],
        "machine_label": row["label"],
        "machine_score": row["score"],
        "machine_stage": row["stage"],
        "agrees": decided["agrees"],
        "revision": decided["revision"],
        "runs": row["runs"],
        "decided_at": row["decided_at"].isoformat(),
    }


def _weight(row: RowMapping) -> float:
    """How many runs of the stream the row stands for: all that share a held item, or those that were not drawn."""
    if row["probability"] is None:
        return float(row["runs"])
    return 1.0 / float(row["probability"] * (row["people_probability"] or 1.0))
