"""Retention: months of the ledger that are closed and old are removed; their sums, exports and what they held are kept.

Rows go by the time in their ids: whole partitions on Postgres. A call may be of the month after that of its inference,
so from a little later on, `kept_from`, every inference is there with all its parts: what is before it is summed into
the record of the removal, and from it on the rows must add up as ever.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.partitions import drop_before, first_id, lock
from gateway.adapters.sql.sums import NO_SUMS, Sums, sums_of
from gateway.adapters.sql.tables import LEDGER, audit_log, inference, metadata, model_call, usage_close
from gateway.core.audit import TERMINAL, ActName
from gateway.core.errors import Conflict

ACT: ActName = "ledger_removed"
# Longer than an inference takes, and than clocks differ.
_MARGIN = timedelta(days=1)


class Removed(Struct, frozen=True):
    """What is no row any more: `before` is the first month kept, and `calls` are all calls before `kept_from`."""

    before: date
    kept_from: str
    calls: Sums
    unsettled: Sums

    def first_day(self, zone: ZoneInfo) -> date:
        """The first day of which all rows are there."""
        return (_instant(self.before) + _MARGIN).astimezone(zone).date() + timedelta(days=1)


class Removal(Struct, frozen=True):
    """What retention would remove: the billing months, the rows of each table, and the calls' sums."""

    months: Sequence[date]
    rows: Mapping[str, int]
    removed: Removed


async def removed(connection: AsyncConnection) -> Removed | None:
    """All that was ever removed; None where nothing was."""
    query = select(audit_log.c.detail).where(audit_log.c.act == ACT).order_by(audit_log.c.id)
    acts = [detail for detail in (await connection.execute(query)).scalars() if detail is not None]
    if not acts:
        return None
    calls, unsettled = NO_SUMS, NO_SUMS
    for act in acts:
        calls, unsettled = calls + Sums(**act["calls"]), unsettled + Sums(**act["unsettled"])
    return Removed(date.fromisoformat(acts[-1]["before"]), acts[-1]["kept_from"], calls, unsettled)


class SqlRetention:
    """Finds and removes. Done again, it finds nothing, and finishes what was broken off."""

    def __init__(self, database: Database, zone: ZoneInfo) -> None:
        self._database, self._zone = database, zone

    async def find(self, keep_months: int, now: datetime) -> Removal:
        """What `write` would remove: all before the month that is `keep_months` before the current one.

        Raises Conflict where a month of it was not closed; Unavailable.
        """
        async with self._database.begin() as connection:
            return await self._find(connection, _first_kept(keep_months, now))

    async def write(self, keep_months: int, now: datetime) -> Removal:
        """Remove it, with the act and its sums in the audit log. Raises as `find` does."""
        before = _first_kept(keep_months, now)
        async with self._database.begin() as connection:
            if self._database.postgres:
                await lock(connection)
            found = await self._find(connection, before)
            if found.removed.calls.rows or any(found.rows.values()):
                await note(connection, TERMINAL, ACT, f"{before:%Y-%m}", now, **_detail(found.removed))
                await drop_before(connection, before)
        return found

    async def _find(self, connection: AsyncConnection, before: date) -> Removal:
        start = first_id(_instant(before))
        rows = {table: await _count(connection, table, start) for table in LEDGER}
        months = await self._months(connection, start)
        await self._check_closed(connection, months)
        last = await removed(connection)
        kept_from = max(await _kept_from(connection, before), last.kept_from if last is not None else "")
        sums = [
            await _between(connection, last, kept_from, *which) for which in ((), (model_call.c.settled.is_(False),))
        ]
        return Removal(months, rows, Removed(before, kept_from, *sums))

    async def _months(self, connection: AsyncConnection, start: str) -> list[date]:
        """The billing months that rows before this id lie in."""
        found: set[date] = set()
        for table, at in ((inference, inference.c.received_at), (model_call, model_call.c.started_at)):
            query = select(func.min(at), func.max(at)).where(table.c.id < start)
            first, last = (await connection.execute(query)).one()
            if first is not None:
                found |= set(_months(*(each.astimezone(self._zone).date() for each in (first, last))))
        return sorted(found)

    async def _check_closed(self, connection: AsyncConnection, months: Sequence[date]) -> None:
        closed = set((await connection.execute(select(usage_close.c.month))).scalars())
        if missing := [f"{month:%Y-%m}" for month in months if month not in closed]:
            raise Conflict(f"Not closed yet: {', '.join(missing)}. `gateway usage close --month …` comes first.")


async def _kept_from(connection: AsyncConnection, before: date) -> str:
    """The id from which on every inference has all its parts when the rows before the month have gone.

    What the sweeper found late has its calls in an inference that is younger than they are.
    """
    start = first_id(_instant(before))
    latest = select(model_call.c.inference_id).where(model_call.c.id < start)
    youngest = (await connection.execute(latest.order_by(model_call.c.inference_id.desc()).limit(1))).scalar()
    margin = first_id(_instant(before) + _MARGIN)
    return margin if youngest is None or youngest < margin else first_id(_time_of(youngest) + timedelta(seconds=1))


async def _between(connection: AsyncConnection, last: Removed | None, kept_from: str, *which: Any) -> Sums:
    query = sums_of(model_call).where(model_call.c.inference_id < kept_from, *which)
    if last is not None:
        query = query.where(model_call.c.inference_id >= last.kept_from)
    return Sums(*(await connection.execute(query)).one())


async def _count(connection: AsyncConnection, table: str, start: str) -> int:
    rows = metadata.tables[table]
    count: int = (await connection.execute(select(func.count()).where(rows.c.id < start))).scalar_one()
    return count


def _first_kept(keep_months: int, now: datetime) -> date:
    month = now.astimezone(UTC).date().replace(day=1)
    for _ in range(keep_months):
        month = (month - timedelta(days=1)).replace(day=1)
    return month


def _months(first: date, last: date) -> Sequence[date]:
    months = [first.replace(day=1)]
    while months[-1] < last.replace(day=1):
        months.append((months[-1] + timedelta(days=32)).replace(day=1))
    return months


def _instant(month: date) -> datetime:
    return datetime(month.year, month.month, month.day, tzinfo=UTC)


def _time_of(id_: str) -> datetime:
    """The time in a UUIDv7."""
    return datetime.fromtimestamp(int(id_.replace("-", "")[:12], 16) / 1000, UTC)


def _detail(removed: Removed) -> dict[str, Any]:
    sums = {"calls": removed.calls.as_dict(), "unsettled": removed.unsettled.as_dict()}
    return {"before": removed.before.isoformat(), "kept_from": removed.kept_from, **sums}
