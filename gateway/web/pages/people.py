"""How far the reviewers of a team's tasks agree, for leads."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler

from gateway.core.agreement import quality_of
from gateway.core.errors import Forbidden
from gateway.web.doors import Doors
from gateway.web.exchange import exchange_of
from gateway.web.pages.html import page
from gateway.web.reply import Reply

PERIOD = timedelta(days=28)


class PeoplePage:
    """The figures of `GET /reviews/agreement`, of the last four weeks."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handler with its path."""
        return (get("/agreement")(self.show_agreement),)

    async def show_agreement(self, request: "Request[Any, Any, Any]") -> Reply:
        """Alpha over all, and each reviewer beside what is known. Raises Forbidden for reviewers."""
        exchange, now = exchange_of(request, self._doors.clock), self._doors.clock.now()
        if exchange.caller.scopes.isdisjoint(("lead", "admin")):
            raise Forbidden("How reviewers agree is for leads.", needs=["lead"])
        found = {}
        for name, task in self._doors.registry().tasks.items():
            if task.declared.owner == exchange.caller.team:
                opinions = await self._doors.people.opinions(name, now - PERIOD, now)
                found[name] = await asyncio.to_thread(quality_of, opinions, self._doors.raters)
        return page("agreement.html", exchange, found=found)
