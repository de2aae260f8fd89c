"""Whether the machine is right, and whether the people are: for leads, and for the team that owns the task."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.core.agreement import PeopleQuality, quality_of
from gateway.core.errors import Forbidden, InvalidInput, UnknownTask
from gateway.core.inference import Caller
from gateway.core.quality import VersionQuality, report
from gateway.web.contract import Query, contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import invalid
from gateway.web.exchange import exchange_of
from gateway.web.reply import Reply, json_reply
from gateway.web.usage import instant_of

AnyRequest = Request[Any, Any, Any]

DEFAULT = timedelta(days=28)
_DATE = {"type": "string", "description": "`2026-01-31` (midnight in the billing timezone) or an RFC 3339 instant"}
_QUERY = (
    Query("task", "A task that the caller's team owns; with the scope `admin`: any.", {"type": "string"}),
    Query("start", "Begin of the interval, included. Default: 28 days before its end.", _DATE),
    Query("end", "End of the interval, excluded. Default: now.", _DATE),
)


class QualityAnswer(Struct, frozen=True):
    """One row for each version of the task that served in [start, end), and one for all. Costs are nano-units of the
    currency.
    """

    task: str
    start: datetime
    end: datetime
    currency: str
    rows: list[VersionQuality]


class AgreementAnswer(Struct, frozen=True):
    """How far the task's reviewers agree with each other, and with what is known."""

    task: str
    start: datetime
    end: datetime
    people: PeopleQuality


class _Asked(Struct, frozen=True):
    task: str
    start: datetime
    end: datetime


class QualityPages:
    """Both are read from the database as it is now, and made of it off the event loop."""

    def __init__(self, doors: Doors, settings: WebSettings) -> None:
        self._doors, self._settings = doors, settings

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        wrong = (InvalidInput, UnknownTask)
        machine = contract("read", "lead", "admin", answer=QualityAnswer, query=_QUERY, errors=wrong)
        people = contract("lead", "admin", answer=AgreementAnswer, query=_QUERY, errors=wrong)
        return (
            get("/quality", opt=machine)(self.show_quality),
            get("/reviews/agreement", opt=people)(self.show_agreement),
        )

    async def show_quality(self, request: AnyRequest) -> Reply:
        """Recall, precision, prevalence, routing share and calibration error of each version, each with its 95 %
        interval, beside its cost. Null: too little of it was judged to say.
        """
        exchange = exchange_of(request, self._doors.clock)
        asked = self._asked(request, exchange.caller)
        evidence = await self._doors.quality.evidence(asked.task, asked.start, asked.end)
        rows = await asyncio.to_thread(report, evidence)
        answer = QualityAnswer(asked.task, asked.start, asked.end, self._settings.currency, rows)
        return json_reply(answer, exchange.headers())

    async def show_agreement(self, request: AnyRequest) -> Reply:
        """Kappa by pair and policy and alpha over all from blind second opinions, accuracy on known items and in
        disputes, and the share of appeals that overturned, by policy and by stage.
        """
        exchange = exchange_of(request, self._doors.clock)
        asked = self._asked(request, exchange.caller)
        opinions = await self._doors.people.opinions(asked.task, asked.start, asked.end)
        people = await asyncio.to_thread(quality_of, opinions, self._doors.raters)
        return json_reply(AgreementAnswer(asked.task, asked.start, asked.end, people), exchange.headers())

    def _asked(self, request: AnyRequest, caller: Caller) -> _Asked:
        given, zone = request.query_params, self._settings.zone
        if not (name := given.get("task")):
            raise invalid("Which task?", ("task", "is missing"))
        task = self._doors.registry().task(name)
        if "admin" not in caller.scopes and caller.team != task.declared.owner:
            raise Forbidden("This is for the team that owns the task.")
        end = instant_of(given.get("end"), "end", zone) or self._doors.clock.now()
        start = instant_of(given.get("start"), "start", zone) or end - DEFAULT
        if end < start:
            raise invalid("The interval ends before it begins.", ("end", "lies before start"))
        return _Asked(name, start, end)
