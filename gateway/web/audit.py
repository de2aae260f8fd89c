"""The audit log: administrative acts, newest first."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.core.audit import Act, Actor
from gateway.core.errors import InvalidInput
from gateway.core.inference import Caller
from gateway.web.contract import Query, contract
from gateway.web.doors import Doors
from gateway.web.envelope import invalid
from gateway.web.exchange import exchange_of
from gateway.web.reply import Reply, json_reply

AnyRequest = Request[Any, Any, Any]

_MOST = 1000
_LIMIT = Query("limit", "How many acts to answer.", {"type": "integer", "minimum": 1, "maximum": _MOST, "default": 100})
_BEFORE = Query("before", "Only acts older than the one of this id.", {"type": "string", "format": "uuid"})


class ActView(Struct, frozen=True):
    """One act. `by_team` and `by_key` are null for somebody at a terminal."""

    id: str
    at: datetime
    by_team: str | None
    by_key: str | None
    act: str
    subject: str
    detail: Mapping[str, Any]


class ActList(Struct, frozen=True):
    """Acts, newest first. `next` is the `before` of the next page, null where there is none."""

    acts: list[ActView]
    next: str | None


class AuditPages:
    """Reading what administrators did."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        every = contract("admin", answer=ActList, query=(_LIMIT, _BEFORE), errors=(InvalidInput,))
        return (get("/audit", opt=every)(self.list_acts),)

    async def list_acts(self, request: AnyRequest) -> Reply:
        """Who created, rotated or revoked which key, and who made or limited which team."""
        limit, before = _limit(request.query_params.get("limit")), _before(request.query_params.get("before"))
        found = await self._doors.audit.latest(limit, before)
        view = ActList([_view(act) for act in found], found[-1].id if len(found) == limit else None)
        return json_reply(view, exchange_of(request, self._doors.clock).headers())


def actor_of(caller: Caller) -> Actor:
    """Who the audit log names for a request."""
    return Actor(caller.team, caller.key_id)


def _limit(text: str | None) -> int:
    if text is None:
        return 100
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= _MOST):
        raise invalid("That is no number of acts.", ("limit", f"must be an integer from 1 to {_MOST}"))
    return int(text)


def _before(text: str | None) -> str | None:
    try:
        return None if text is None else str(UUID(text))
    except ValueError:
        raise invalid("That is no id of an act.", ("before", "must be the id of an act")) from None


def _view(act: Act) -> ActView:
    return ActView(act.id, act.at, act.by.team, act.by.key_id, act.act, act.subject, act.detail)
