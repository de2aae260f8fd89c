"""GPU-hours over SQL: each hour is shared out once, when it is over and none of its calls is still under way."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct, structs
from sqlalchemy import Select, and_, case, func, insert, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.settled import settled_until
from gateway.adapters.sql.sums import total
from gateway.adapters.sql.tables import gpu_share, model_call, usage_close
from gateway.core.gpu_hours import GpuShare, Who, shares
from gateway.core.prices import GpuHour, Tariff
from gateway.core.reports import day_start, month_after

HOUR = timedelta(hours=1)
_WHO = ("payer_team", "caller_team", "owner_team", "task")


class OpenHour(Struct, frozen=True):
    """An hour that is paid for, and not shared out yet."""

    model: str
    start: datetime
    rate: GpuHour


class HoursOff(Struct, frozen=True):
    """How many hours do not sum to their bill; how many differ from their calls, as far back as there are calls."""

    bills: int
    tokens: int


class SqlGpuHours:
    """Any number of processes may share out at once; done again, it writes nothing."""

    def __init__(self, database: Database, zone: ZoneInfo) -> None:
        self._database, self._zone = database, zone

    async def allocate(
        self, tariffs: Mapping[str, Tariff], now: datetime, most: int | None = None
    ) -> Sequence[GpuShare]:
        """Share out every hour that is over, oldest first, at most `most` of them. `tariffs` are by model.

        Hours count from the day on which a model's price per hour begins, called or not, but never those of a closed
        month: its export was handed over. Raises Unavailable.
        """
        async with self._database.begin() as connection:
            until = await settled_until(connection, now)
            open_hours = await self._open(connection, tariffs, until)
        written: list[GpuShare] = []
        for hour in open_hours[:most]:
            if hour.start + HOUR <= until:
                written += await self._share_out(hour, now)
        return written

    async def open_hours(self, tariffs: Mapping[str, Tariff], month: date) -> Sequence[OpenHour]:
        """Hours up to the end of a month that are not shared out. Raises Unavailable."""
        async with self._database.begin() as connection:
            return await self._open(connection, tariffs, day_start(month_after(month), self._zone))

    async def off(self) -> HoursOff:
        """What `gateway ledger verify` must find to be 0. Raises Unavailable."""
        async with self._database.begin() as connection:
            return HoursOff(
                await _count(connection, _not_their_bill()),
                await _count(connection, _not_their_calls((await _oldest_call(connection)) or datetime.now(UTC))),
            )

    async def _open(
        self, connection: AsyncConnection, tariffs: Mapping[str, Tariff], until: datetime
    ) -> list[OpenHour]:
        closed = set((await connection.execute(select(usage_close.c.month))).scalars())
        found = []
        for model, tariff in tariffs.items():
            if (since := tariff.gpu_since()) is None:
                continue
            done = set((await connection.execute(_hours_of(model))).scalars())
            hour = datetime.combine(since, time(), UTC)
            while hour < until:
                rate = tariff.gpu_hour(hour)
                if rate is not None and hour not in done and self._day(hour).replace(day=1) not in closed:
                    found.append(OpenHour(model, hour, rate))
                hour += HOUR
        return sorted(found, key=lambda each: (each.start, each.model))

    async def _share_out(self, hour: OpenHour, now: datetime) -> Sequence[GpuShare]:
        try:
            async with self._database.begin() as connection:
                lines = self._lines(hour, await _used(connection, hour), now)
                await connection.execute(insert(gpu_share), [structs.asdict(line) for line in lines])
                return lines
        except IntegrityError:
            # Another process was faster; it saw the same calls. Each hour has its idle line, so one of two must fail.
            return ()

    def _lines(self, hour: OpenHour, used: Mapping[Who, int], now: datetime) -> list[GpuShare]:
        return [
            GpuShare(
                model=hour.model,
                hour=hour.start,
                hour_end=hour.start + HOUR,
                day=self._day(hour.start),
                **dict(zip(_WHO, who, strict=True)),
                tokens=tokens,
                bill_nano=hour.rate.bill_nano,
                cost_nano=cost_nano,
                created_at=now,
            )
            for who, (tokens, cost_nano) in sorted(shares(hour.rate, used).items())
        ]

    def _day(self, hour: datetime) -> date:
        return hour.astimezone(self._zone).date()


async def _used(connection: AsyncConnection, hour: OpenHour) -> dict[Who, int]:
    calls = model_call.c
    who = [calls[name] for name in _WHO]
    query = select(*who, total(calls.input_tokens + calls.output_tokens)).group_by(*who)
    query = query.where(calls.model == hour.model, calls.gpu_hour_nano.is_not(None))
    found = await connection.execute(query.where(calls.started_at >= hour.start, calls.started_at < hour.start + HOUR))
    return {(row[0], row[1], row[2], row[3]): row[4] for row in found}


def _hours_of(model: str) -> Select[Any]:
    return select(gpu_share.c.hour).where(gpu_share.c.model == model, gpu_share.c.task == "")


def _not_their_bill() -> Select[Any]:
    lines = gpu_share.c
    query: Select[Any] = select(lines.hour).group_by(lines.model, lines.hour)
    differs = func.sum(lines.cost_nano) != func.max(lines.bill_nano)
    return query.having(or_(differs, func.min(lines.bill_nano) != func.max(lines.bill_nano)))


def _not_their_calls(oldest: datetime) -> Select[Any]:
    """Tokens of an hour's lines, without the idle one, and of its calls."""
    lines, calls = gpu_share.c, model_call.c
    hours = (
        select(lines.model, lines.hour, lines.hour_end, total(_busy()).label("tokens"))
        .where(lines.hour >= oldest)
        .group_by(lines.model, lines.hour, lines.hour_end)
        .subquery()
    )
    during = and_(
        calls.model == hours.c.model,
        calls.started_at >= hours.c.hour,
        calls.started_at < hours.c.hour_end,
        calls.gpu_hour_nano.is_not(None),
    )
    query: Select[Any] = (
        select(hours.c.hour)
        .select_from(hours.join(model_call, during, isouter=True))
        .group_by(hours.c.model, hours.c.hour, hours.c.tokens)
    )
    return query.having(func.coalesce(func.sum(calls.input_tokens + calls.output_tokens), 0) != hours.c.tokens)


def _busy() -> Any:
    return case((gpu_share.c.task == "", 0), else_=gpu_share.c.tokens)


async def _oldest_call(connection: AsyncConnection) -> datetime | None:
    oldest: datetime | None = (await connection.execute(select(func.min(model_call.c.started_at)))).scalar_one()
    return oldest


async def _count(connection: AsyncConnection, query: Select[Any]) -> int:
    count: int = (await connection.execute(select(func.count()).select_from(query.subquery()))).scalar_one()
    return count
