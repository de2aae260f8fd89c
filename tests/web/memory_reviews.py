"""Reviews in memory: the rules are core's own, so this is a dictionary and a list."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from gateway.core.audit import TERMINAL, Actor
from gateway.core.errors import NotFound
from gateway.core.review_ports import Depth, Filter, Question, RunOutcome
from gateway.core.review_rules import lease, takeable
from gateway.core.reviews import LEASE, LEASES, Event, Item, Reviewer, Rule
from gateway.core.webhooks import Webhook


class MemoryReviews:
    """Core's ReviewQueue and ReviewBook."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.events: list[Event] = []
        self.texts: dict[str, Mapping[str, Any]] = {}

    async def take(
        self,
        by: Reviewer,
        now: datetime,
        token: str,
        task: str | None = None,
        *,
        escalated: bool = False,
        lasting: timedelta = LEASE,
    ) -> Item | None:
        """The first in rank."""
        free = [i for i in self.items.values() if takeable(i, by, now, escalated=escalated) and task in (None, i.task)]
        mine = [i for i in self.items.values() if i.lease_key == by.key_id and i.lease_until and i.lease_until > now]
        if not free or len(mine) >= LEASES:
            return None
        first = min(free, key=lambda item: item.rank_at)
        return await self.change(first.id, lambda item: lease(item, by, now, token, lasting))

    async def known(self, by: Reviewer, task: str) -> Item | None:
        """None is."""
        return None

    async def change(self, review_id: str, rule: Rule) -> Item:
        """Apply the rule, and what it says of others."""
        if review_id not in self.items:
            raise NotFound("There is no such review.")
        change = rule(self.items[review_id])
        self.items[review_id] = change.item
        self.events.append(change.event)
        self.items |= {item.id: item for item in change.ask}
        if change.on_root is not None:
            await self.change(change.item.root_id, change.on_root)
        return change.item

    async def put(self, item: Item, inference_id: str, input: Mapping[str, Any], subject_id: str | None) -> None:
        """Keep it."""
        self.items[item.id], self.texts[item.id] = item, input

    async def find(self, review_id: str) -> Item | None:
        """By its own id."""
        return self.items.get(review_id)

    async def question(self, item: Item, by: Actor, now: datetime) -> Question:
        """The text."""
        return Question(input=self.texts.get(item.root_id), label=None, reason=None, thread_id=None)

    async def history(self, review_id: str) -> Sequence[Event]:
        """In order."""
        return [event for event in self.events if event.review_id == review_id]

    async def listed(self, wanted: Filter) -> Sequence[Item]:
        """Newest first."""
        asked = [(name, getattr(wanted, name)) for name in ("owner_team", "task", "state", "lease_key")]
        named = [(name, value) for name, value in asked if value is not None]
        items = reversed(self.items.values())
        return [i for i in items if all(getattr(i, name) == value for name, value in named)][: wanted.limit]

    async def depth(self, owner_team: str, now: datetime) -> Sequence[Depth]:
        """What is open."""
        mine = [item for item in self.items.values() if item.owner_team == owner_team]
        return [Depth(task=task, open=len(mine)) for task in {item.task for item in mine}]

    async def outcome(self, review_id: str, now: datetime) -> RunOutcome | None:
        """As the item stands."""
        if (item := self.items.get(review_id)) is None:
            return None
        return RunOutcome(
            review_id=item.id, state=item.state, outcome=item.outcome, policies=(), reason=None,
            decided_at=item.decided_at, due_at=item.due_at, revision=0, runs=item.runs, final=False,
        )  # fmt: skip


class MemoryDesk:
    """Core's Sessions and Exposure."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.shown: set[tuple[str, date, int, str]] = set()

    async def open(self, name: str, key_id: str, lasting: timedelta) -> None:
        """For ever."""
        self.keys[name] = key_id

    async def key_id(self, name: str) -> str | None:
        """If there is one."""
        return self.keys.get(name)

    async def close(self, name: str) -> None:
        """Forget it."""
        self.keys.pop(name, None)

    async def add(self, key_id: str, day: date, severity: int, review_id: str) -> None:
        """Once."""
        self.shown.add((key_id, day, severity, review_id))

    async def of(self, key_id: str, day: date) -> Mapping[int, int]:
        """By counting."""
        return {s: sum(each[:3] == (key_id, day, s) for each in self.shown) for s in (1, 2, 3)}


class MemoryWebhooks:
    """By team."""

    def __init__(self, teams: Mapping[str, Any]) -> None:
        self.webhooks: dict[str, Webhook] = {}
        self._teams = teams

    async def put(self, webhook: Webhook, by: Actor = TERMINAL) -> None:
        """Set it."""
        if webhook.team not in self._teams:
            raise NotFound(f"There is no team `{webhook.team}`.")
        self.webhooks[webhook.team] = webhook

    async def of_team(self, team: str) -> Webhook | None:
        """If there is one."""
        return self.webhooks.get(team)

    async def rotate(self, team: str, secret: str, now: datetime, overlap: timedelta, by: Actor = TERMINAL) -> Webhook:
        """Another secret beside the old one."""
        if (old := self.webhooks.get(team)) is None:
            raise NotFound(f"The team `{team}` has no webhook.")
        self.webhooks[team] = replace(old, secret=secret, former_secret=old.secret, former_until=now + overlap)
        return self.webhooks[team]

    async def remove(self, team: str, by: Actor = TERMINAL) -> None:
        """Forget it."""
        if self.webhooks.pop(team, None) is None:
            raise NotFound(f"The team `{team}` has no webhook.")
