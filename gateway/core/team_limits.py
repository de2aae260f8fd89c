"""Limits of caller teams: set while gateways run, picked up by every replica, and held beside the tasks' own quotas."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from gateway.core.errors import InvalidInput, Unavailable
from gateway.core.quotas import Limit, limit_of
from gateway.core.records import TeamLimit
from gateway.core.task import Per, Quota

log = structlog.get_logger()

# A limit that was set holds everywhere after at most this long.
REFRESH_S = 1.5


class TeamLimitStore(Protocol):
    """Where the limits are kept."""

    async def limits(self) -> Mapping[str, Sequence[TeamLimit]]:
        """The limits of every team that has any. Raises Unavailable."""


class Counting(Protocol):
    """The fast counters, as far as they need to know which budgets there are."""

    async def count_for(self, budgets: str, *, changed: bool) -> None:
        """Where the counters were kept for other budgets, or budgets `changed` under this process, they are rebuilt
        before the next reservation. Raises Unavailable.
        """


def team_limit(declared: TeamLimit) -> Limit:
    """In integers. Raises InvalidInput with what is wrong."""
    try:
        return limit_of(
            Quota(resource=declared.resource, limit=declared.limit, per=declared.per, scope=("caller_team",))
        )
    except ValueError as error:
        raise InvalidInput(f"That is no limit of a team: {error}.") from error


class TeamLimits:
    """The limits as they were read last.

    `tasks` gives the declared limits by task. A budget that is new has a counter that knows nothing of what its window
    has seen already, so a change of budgets has the counters rebuilt from the ledger.
    """

    def __init__(
        self, store: TeamLimitStore, counting: Counting, tasks: Callable[[], Mapping[str, Sequence[Limit]]]
    ) -> None:
        self._store, self._counting, self._tasks = store, counting, tasks
        self._teams: dict[str, tuple[Limit, ...]] = {}
        self._announced = ""

    def of_team(self, team: str) -> Sequence[Limit]:
        """What holds for all requests of a caller team."""
        return self._teams.get(team, ())

    def of(self, task: str, team: str) -> Sequence[Limit]:
        """What holds for the requests of a caller team to a task."""
        return (*self._tasks().get(task, ()), *self.of_team(team))

    def windows(self) -> set[Per]:
        """The kinds of window that any budget has."""
        return {limit.per for _, limit in self._budgets() if limit.per is not None}

    async def refresh(self) -> None:
        """Read them anew, and tell the counters which budgets there are. Raises Unavailable."""
        stored = await self._store.limits()
        self._teams = {team: tuple(map(team_limit, limits)) for team, limits in stored.items()}
        if (budgets := self._fingerprint()) != self._announced:
            # Until now this process charged the old budgets only, whatever other replicas have done by now.
            await self._counting.count_for(budgets, changed=bool(self._announced))
            self._announced = budgets
            log.info("budgets_changed", teams=len(self._teams))

    async def follow(self) -> None:
        """Refresh until cancelled; while a store is away, what was read last holds."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except Unavailable:
                log.warning("team_limits_not_refreshed")

    def _budgets(self) -> Iterable[tuple[str, Limit]]:
        limits = [(f"task {name}", limit) for name, each in self._tasks().items() for limit in each]
        limits += [(f"team {name}", limit) for name, each in self._teams.items() for limit in each]
        return [(owner, limit) for owner, limit in limits if limit.resource in ("tokens", "cost")]

    def _fingerprint(self) -> str:
        """Of the counters that there are; how high their limits are changes nothing in them."""
        named = sorted((owner, limit.resource, limit.per or "", limit.scope) for owner, limit in self._budgets())
        return hashlib.sha256(repr(named).encode()).hexdigest()[:16]
