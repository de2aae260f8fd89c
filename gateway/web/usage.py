"""What was spent: the ledger, summed."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.core.errors import Forbidden, InvalidInput
from gateway.core.inference import Caller
from gateway.core.prices import from_nano
from gateway.core.records import UsageRow
from gateway.web.contract import Query, contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import invalid
from gateway.web.exchange import exchange_of
from gateway.web.reply import Reply, json_reply

AnyRequest = Request[Any, Any, Any]

_DATE = {"type": "string", "description": "`2026-01-31` (midnight in the billing timezone) or an RFC 3339 instant"}
_QUERY = (
    Query("start", "Begin of the interval, included. Default: the first of this month.", _DATE),
    Query("end", "End of the interval, excluded. Default: now.", _DATE),
    Query("team", "The paying team. Default: the caller's own; with the scope `finance`: all.", {"type": "string"}),
)


class UsageLine(Struct, frozen=True):
    """What one team spent on one task with one model.

    `model` is null in the line that counts inferences; calls, tokens and cost are in the lines of the models, so that
    every column may be summed. `unsettled_cost` is the part of `cost` that is an estimate.
    """

    team: str
    task: str
    model: str | None
    inferences: int
    model_calls: int
    input_tokens: int
    output_tokens: int
    cost: str
    unsettled_cost: str


class UsageAnswer(Struct, frozen=True):
    """Lines of the half-open interval [start, end), and their exact total."""

    start: str
    end: str
    currency: str
    lines: list[UsageLine]
    total_cost: str


class UsagePages:
    """A team sees what it pays for; `finance` sees every team."""

    def __init__(self, doors: Doors, settings: WebSettings) -> None:
        self._doors, self._settings = doors, settings

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handler with its path and contract."""
        opt = contract("read", "finance", answer=UsageAnswer, errors=(InvalidInput,), query=_QUERY)
        return (get("/usage", opt=opt)(self.show_usage),)

    async def show_usage(self, request: AnyRequest) -> Reply:
        """Tokens and cost per paying team, task and model in an interval; by default this month so far."""
        exchange = exchange_of(request, self._doors.clock)
        query, zone, now = request.query_params, self._settings.zone, self._doors.clock.now()
        first = datetime.combine(now.astimezone(zone).date().replace(day=1), time(), zone)
        start = instant_of(query.get("start"), "start", zone) or first
        end = instant_of(query.get("end"), "end", zone) or now
        if end < start:
            raise invalid("The interval ends before it begins.", ("end", "lies before start"))
        rows = await self._doors.usage.roll_up(
            start.astimezone(UTC), end.astimezone(UTC), _whose(query.get("team"), exchange.caller)
        )
        answer = UsageAnswer(
            start.isoformat(),
            end.isoformat(),
            self._settings.currency,
            [_line(row) for row in rows],
            from_nano(sum(row.cost_nano for row in rows)),
        )
        return json_reply(answer, exchange.headers())


def _whose(asked: str | None, caller: Caller) -> str | None:
    """The team whose usage is shown; None for all."""
    if "finance" in caller.scopes:
        return asked
    if asked not in (None, caller.team):
        raise Forbidden("This key sees the usage of its own team; the scope `finance` sees every team's.")
    return caller.team


_YEARS = (1970, 9000)
"""Dates at the edges of the calendar do not survive a change of timezone."""


def instant_of(text: str | None, name: str, zone: ZoneInfo) -> datetime | None:
    """A day or an instant as a query says it. Raises InvalidInput."""
    if text is None:
        return None
    try:
        if len(text) == 10:
            instant = datetime.combine(date.fromisoformat(text), time(), zone)
        else:
            instant = datetime.fromisoformat(text)
        if not _YEARS[0] <= instant.year <= _YEARS[1]:
            raise ValueError
    except ValueError:
        raise invalid("That is no date.", (name, "write 2026-01-31 or 2026-01-31T12:00:00Z")) from None
    if instant.tzinfo is None:
        raise invalid("An instant needs its offset.", (name, "write 2026-01-31T12:00:00Z"))
    return instant


def _line(row: UsageRow) -> UsageLine:
    return UsageLine(
        row.team,
        row.task,
        row.model,
        row.inferences,
        row.model_calls,
        row.input_tokens,
        row.output_tokens,
        from_nano(row.cost_nano),
        from_nano(row.unsettled_nano),
    )
