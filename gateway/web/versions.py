"""Versions of a task: when each was first served, and what it was made of."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.core.errors import NotFound, UnknownTask
from gateway.core.versions import Version
from gateway.web.contract import contract
from gateway.web.doors import Doors
from gateway.web.exchange import exchange_of
from gateway.web.reply import Reply, json_reply
from gateway.web.tasks import offered_task

AnyRequest = Request[Any, Any, Any]

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


class VersionLine(Struct, frozen=True):
    """`current`: this is the version that answers now."""

    fingerprint: str
    first_seen: datetime
    current: bool


class VersionList(Struct, frozen=True):
    """Every version that was ever served, newest first."""

    task: str
    versions: list[VersionLine]


class VersionView(Struct, frozen=True):
    """One version. `config` (declaration, prompts, models, files) is for the team that owns the task; null for others.

    Files are named with their SHA-256; those that are text have their words too.
    """

    task: str
    fingerprint: str
    first_seen: datetime
    current: bool
    config: dict[str, Any] | None


class VersionPages:
    """A run names the fingerprint that answered; here it can be looked up."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        every = contract("read", answer=VersionList, errors=(UnknownTask,))
        one = contract("read", answer=VersionView, errors=(UnknownTask, NotFound))
        return (
            get("/tasks/{task:str}/versions", opt=every)(self.list_versions),
            get("/tasks/{task:str}/versions/{fingerprint:str}", opt=one)(self.show_version),
        )

    async def list_versions(self, request: AnyRequest) -> Reply:
        """Every version of a task that was ever served, newest first."""
        exchange = exchange_of(request, self._doors.clock)
        task = offered_task(self._doors, request)
        found = await self._doors.versions.of_task(task.name)
        lines = [VersionLine(v.fingerprint, v.first_seen, v.fingerprint == task.fingerprint) for v in found]
        return json_reply(VersionList(task.name, lines), exchange.headers())

    async def show_version(self, request: AnyRequest) -> Reply:
        """One version by its fingerprint, as a run names it. What it was made of is shown to the task's owner."""
        exchange = exchange_of(request, self._doors.clock)
        task = offered_task(self._doors, request)
        version = await self._version(task.name, request.path_params["fingerprint"])
        owned = exchange.caller.team == task.declared.owner
        view = VersionView(
            version.task,
            version.fingerprint,
            version.first_seen,
            version.fingerprint == task.fingerprint,
            version.config if owned else None,
        )
        return json_reply(view, exchange.headers())

    async def _version(self, task: str, fingerprint: str) -> Version:
        found = await self._doors.versions.find(task, fingerprint) if _FINGERPRINT.fullmatch(fingerprint) else None
        if found is None:
            raise NotFound("This task was never served with that fingerprint.")
        return found
