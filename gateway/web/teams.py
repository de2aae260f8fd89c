"""Teams: create, list, and limit."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post, put
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from gateway.core.errors import Conflict, NotFound
from gateway.core.records import Team, TeamLimit
from gateway.core.task import Name
from gateway.core.team_limits import team_limit
from gateway.web.audit import actor_of
from gateway.web.contract import contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import parse
from gateway.web.exchange import exchange_of
from gateway.web.limits import read_body
from gateway.web.reply import Reply, json_reply

AnyRequest = Request[Any, Any, Any]


class NewTeam(Struct, frozen=True, forbid_unknown_fields=True):
    """A name in lower case letters, digits, - and _."""

    name: Name


class NewLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """All limits of a team; those that are left out end."""

    limits: Annotated[list[TeamLimit], Meta(max_length=32)]


class TeamView(Struct, frozen=True):
    """A team. Its limits hold for everything that it calls, beside the quotas of each task."""

    name: str
    created_at: datetime
    limits: tuple[TeamLimit, ...]


class TeamList(Struct, frozen=True):
    """Every team, by name."""

    teams: list[TeamView]


class TeamPages:
    """Administration of teams."""

    def __init__(self, doors: Doors, settings: WebSettings) -> None:
        self._doors, self._settings = doors, settings
        self._decoder = msgspec.json.Decoder(NewTeam)
        self._limits_decoder = msgspec.json.Decoder(NewLimits)

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        create = contract("admin", body=NewTeam, answer=TeamView, status=201, errors=(Conflict,))
        limit = contract("admin", body=NewLimits, answer=TeamView, errors=(NotFound,))
        return (
            put("/teams/{team:str}/limits", opt=limit)(self.limit_team),
            post("/teams", status_code=201, opt=create)(self.create_team),
            get("/teams", opt=contract("admin", answer=TeamList))(self.list_teams),
        )

    async def create_team(self, request: AnyRequest) -> Reply:
        """A new team. Its name is what keys, quotas and reports know it by, and never changes."""
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._decoder, await read_body(request, self._settings), self._settings)
        team = Team(body.name, self._doors.clock.now())
        await self._doors.teams.add(team, actor_of(exchange.caller))
        return json_reply(_view(team), exchange.headers(), 201)

    async def limit_team(self, request: AnyRequest) -> Reply:
        """Replace the limits of a team. They hold on every replica within two seconds, and what was used stays used."""
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._limits_decoder, await read_body(request, self._settings), self._settings)
        for limit in body.limits:
            team_limit(limit)
        name, by = request.path_params["team"], actor_of(exchange.caller)
        team = await self._doors.teams.set_limits(name, body.limits, by)
        return json_reply(_view(team), exchange.headers())

    async def list_teams(self, request: AnyRequest) -> Reply:
        """Every team."""
        teams = await self._doors.teams.all()
        view = TeamList([_view(team) for team in teams])
        return json_reply(view, exchange_of(request, self._doors.clock).headers())


def _view(team: Team) -> TeamView:
    return TeamView(team.name, team.created_at, team.limits)
