"""Distributions of a day over SQL, from the ledger's inferences alone, and what was told of them."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import structs
from sqlalchemy import case, func, select
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.quality import llm_stages
from gateway.adapters.sql.tables import drift as drift_table
from gateway.adapters.sql.tables import inference
from gateway.core.drift import EDGES, ROUTING, Drift, Spread

_run = inference.c
_DAY = timedelta(days=1)


class SqlDrift:
    """Core's DriftBook."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spreads(self, task: str, start: datetime, end: datetime) -> Sequence[Spread]:
        """Of the runs of [start, end). Raises Unavailable.

        Scores are those by which a stage decided. A day is a statement of its own: a busy week would outlast the time
        that a statement may take.
        """
        counts: Counter[tuple[str, str | None, int | None]] = Counter()
        while start < end:
            counts.update(await self._counts(task, start, min(start + _DAY, end)))
            start += _DAY
        async with self._database.begin() as connection:
            chains = await llm_stages(connection, task)
        spreads: dict[tuple[str, str], list[int]] = {}
        for (version, stage, place), runs in counts.items():
            routed = stage is None or stage in chains.get(version, frozenset())
            spreads.setdefault((version, ROUTING), [0, 0])[routed] += runs
            if stage is not None and place is not None:
                spreads.setdefault((version, f"scores of {stage}"), [0] * (len(EDGES) + 1))[place] += runs
        return [Spread(version, what, tuple(numbers)) for (version, what), numbers in spreads.items()]

    async def tell(self, drift: Drift, now: datetime) -> bool:
        """Whether nobody has told of it yet; from now on somebody has. Raises Unavailable."""
        insert = postgres_insert if self._database.postgres else sqlite_insert
        row = {**structs.asdict(drift), "created_at": now}
        async with self._database.begin() as connection:
            return (await connection.execute(insert(drift_table).values(row).on_conflict_do_nothing())).rowcount == 1

    async def _counts(self, task: str, start: datetime, end: datetime) -> dict[tuple[str, str | None, int | None], int]:
        """Runs by version, deciding stage and bin of the score; no bin where there is no score."""
        bins = [(_run.score.is_(None), None), *((_run.score < edge, place) for place, edge in enumerate(EDGES))]
        place = case(*bins, else_=len(EDGES)).label("place")
        ways = select(_run.fingerprint, _run.stage, place).where(
            _run.task == task, _run.kind == "invoke", _run.received_at >= start, _run.received_at < end
        )
        each = ways.subquery()
        query = select(*each.c, func.count()).group_by(*each.c)
        async with self._database.begin() as connection:
            return {(row[0], row[1], row[2]): row[3] for row in await connection.execute(query)}
