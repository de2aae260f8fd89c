"""The audit sample over SQL: rows that the ledger wrote with their inferences, claimed by whoever audits them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import RowMapping, select, update

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.reviews import put
from gateway.adapters.sql.tables import audit_sample, inference
from gateway.core.samples import Drawn, Judged

_sample = audit_sample.c


class SqlSamples:
    """Core's Samples."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, now: datetime, until: datetime, limit: int) -> Sequence[Drawn]:
        """The longest waiting; nobody else claims them before `until`. Raises Unavailable."""
        due = select(_sample.id).where(_sample.status == "waiting", _sample.due_at <= now)
        some = due.order_by(_sample.due_at).limit(limit)
        own = [_sample[name] for name in Drawn.__struct_fields__ if name != "trace_id"]
        # Most turns find nothing, and SQLite would take its write lock for them.
        async with self._database.begin() as connection:
            if (await connection.execute(some.limit(1))).first() is None:
                return []
            claimed = (
                update(audit_sample)
                .where(_sample.id.in_(some.with_for_update(skip_locked=True)))
                .values(due_at=until, tries=_sample.tries + 1)
                .returning(*own)
            )
            rows = (await connection.execute(claimed)).mappings().all()
            runs = select(inference.c.id, inference.c.trace_id).where(inference.c.id.in_([row["id"] for row in rows]))
            traces = {row.id: row.trace_id for row in await connection.execute(runs)}
            return [_drawn(row, traces.get(row["id"])) for row in rows]

    async def postpone(self, id: str, until: datetime) -> None:
        """Nobody claims it before; the try that began does not count. Raises Unavailable."""
        await self._set(id, due_at=until, tries=_sample.tries - 1)

    async def settle(self, drawn: Drawn, judged: Judged) -> None:
        """Done; the text is forgotten here, and kept with the question if there is one. Raises Unavailable."""
        question = judged.question
        done = (
            update(audit_sample)
            .where(_sample.id == drawn.id, _sample.status == "waiting")
            .values(
                status="judged",
                input=None,
                verdict=judged.verdict,
                audit_id=judged.audit_id,
                people_probability=judged.people_probability,
                review_id=question.id if question else None,
            )
        )
        async with self._database.begin() as connection:
            # Somebody else may have settled what this process took too long for.
            settled = (await connection.execute(done)).rowcount
            if settled and question is not None and drawn.input is not None:
                await put(connection, question, drawn.id, drawn.input, drawn.subject_id)

    async def drop(self, id: str, reason: str) -> None:
        """It will never be looked at: counted, and its text forgotten. Raises Unavailable."""
        await self._set(id, status="dropped", reason=reason, input=None)

    async def _set(self, id: str, **values: Any) -> None:
        mine = (_sample.id == id, _sample.status == "waiting")
        async with self._database.begin() as connection:
            await connection.execute(update(audit_sample).where(*mine).values(values))


def _drawn(row: RowMapping, trace_id: str | None) -> Drawn:
    text = row["input"]
    return Drawn(**{**row, "input": msgspec.json.decode(text) if text is not None else None}, trace_id=trace_id)
