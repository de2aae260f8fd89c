"""What a process shows of itself: the parts of /health/ready, and what a scrape of /metrics looks up."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.adapters.redis import RedisStore
from gateway.adapters.redis.peers import Peers
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.review_book import SqlReviewBook
from gateway.adapters.sql.teams import SqlTeams
from gateway.core.canaries import Canaries
from gateway.core.clock import Clock
from gateway.core.pins import Pins
from gateway.core.registry import Registry
from gateway.core.reload import Reloader
from gateway.core.team_limits import TeamLimits
from gateway.core.telemetry import Reading
from gateway.settings import Settings
from gateway.web.doors import Check

if TYPE_CHECKING:
    from gateway.adapters.readings import Look

_SHOWN_PROBLEMS = 20


class Shown(Struct, frozen=True):
    """The parts that are looked at."""

    settings: Settings
    clock: Clock
    registry: Callable[[], Registry]
    database: Database
    store: RedisStore
    limits: TeamLimits
    reloader: Reloader
    pins: Pins
    canaries: Canaries
    peers: Peers

    def checks(self) -> Mapping[str, Check]:
        """The parts of /health/ready."""

        async def database() -> None:
            await self.database.ping()

        async def store() -> str | None:
            await self.store.ping()
            return "request quotas come from this process's share" if self.store.health().degraded else None

        async def config() -> str | None:
            if not (problems := self.reloader.problems):
                return None
            shown = "; ".join(f"{p.file}: {p.path}: {p.message}" for p in problems[:_SHOWN_PROBLEMS])
            return f"the last edit changed nothing, it has {len(problems)} problem(s): {shown}"

        async def models() -> str | None:
            # Addresses of servers are in the log; the page is public.
            names = ", ".join(f"`{name}`" for name in sorted(self.pins.differing))
            wrong = ", ".join(f"`{name}`" for name in sorted(self.canaries.wrong))
            said = [f"not what models.toml pins, or away: {names}"] if names else []
            said += [f"wrong answers to canaries: {wrong}"] if wrong else []
            return "; ".join(said) or None

        async def peers() -> str | None:
            names = ", ".join(f"`{name}`" for name in self.peers.differing)
            return f"replicas serve different versions of {names}" if names else None

        return {
            "database": Check(database, required=True),
            "store": Check(store),
            "config": Check(config),
            "models": Check(models),
            "peers": Check(peers),
        }

    def looks(self) -> "Mapping[str, Look]":
        """What a scrape looks up beside what is counted."""
        from gateway.adapters import readings

        async def versions() -> Sequence[Reading]:
            tasks = list(self.registry().every.values())
            return readings.versions(tasks, self.peers.differing, len(self.reloader.problems))

        async def parts() -> Sequence[Reading]:
            return await readings.parts({name: check.probe for name, check in self.checks().items()})

        async def reviews() -> Sequence[Reading]:
            book, now = SqlReviewBook(self.database), self.clock.now()
            owners = {task.declared.owner for task in self.registry().tasks.values()}
            depths = [depth for owner in owners for depth in await book.depth(owner, now)]
            return readings.review_queue(depths, now)

        async def budgets() -> Sequence[Reading]:
            teams = [team.name for team in await SqlTeams(self.database).all()]
            tasks, now = self.registry().every, self.clock.now()
            charges = readings.budget_charges(tasks, teams, self.limits.of, now, self.settings.zone)
            return await readings.budgets(charges, self.store.standings)

        return {"versions": versions, "parts": parts, "reviews": reviews, "budgets": budgets}
