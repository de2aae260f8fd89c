"""The ports of the web layer in memory, and two small tasks: enough to serve real HTTP without a database.

The engine is the real one. What a stage says is a function of the message, so that tests can ask for any outcome.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import uuid_utils
from memory_reviews import MemoryDesk, MemoryReviews, MemoryWebhooks
from msgspec.structs import replace

from gateway.adapters.raters import NltkRaters
from gateway.adapters.schema import Schema
from gateway.core.agreement import Opinion, Opinions
from gateway.core.audit import TERMINAL, Act, ActName, Actor
from gateway.core.cascade import Finding, Runner, StageFailed, Step
from gateway.core.clock import Clock
from gateway.core.desk import Desk
from gateway.core.engine import Admission, Engine
from gateway.core.errors import Conflict, GatewayError, NotFound, QuotaExceeded, Unavailable
from gateway.core.flights import Looked
from gateway.core.inference import Inference, Intent, RateHeader
from gateway.core.keys import SCOPES, ApiKey, mint
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Meter, Settlement
from gateway.core.quality import Counted, Evidence
from gateway.core.quotas import Charge
from gateway.core.records import Feedback, Run, Team, TeamLimit, UsageRow
from gateway.core.registry import Registry
from gateway.core.task import ChainStage, RulesStage, Task
from gateway.core.versions import Version
from gateway.web.doors import Doors

FINGERPRINT = "0123456789abcdef"
CLOCK = Clock(new_id=lambda: str(uuid_utils.uuid7()))

_MODERATION_INPUT = {
    "type": "object",
    "required": ["message", "sender_role"],
    "additionalProperties": False,
    "properties": {
        "message": {"type": "string", "maxLength": 20_000},
        "sender_role": {"enum": ["customer", "pro"]},
        "context": {"type": "array", "maxItems": 20},
    },
}
_ROUTING_INPUT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}


class Scripted:
    """A stage whose finding depends on the message: `spam …` is a violation, `break …` fails, `hold …` is unsure."""

    def __init__(self, field: str) -> None:
        self.field = field

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """The finding for the first word of the field."""
        text = str(item[self.field])
        match text.split(" ")[0]:
            case "spam":
                output = {"policies": ["spam_scam"]} if self.field == "message" else {}
                return Finding(label="violation", score=0.97, output=output, matched=("spam",))
            case "break":
                raise StageFailed("model_timeout")
            case "hold":
                return Finding(reason="unsure")
            case "bug":
                raise RuntimeError(text)
        return Finding(label="clean", score=0.01)


class MemoryStore:
    """Admits everything, and remembers it, except what a test tells it to refuse."""

    def __init__(self) -> None:
        self.refuse: GatewayError | None = None
        self.admitted: list[str] = []

    async def admit(
        self, invocation_id: str, charges: Sequence[Charge], cache_key: str | None, *, claims: bool = True
    ) -> Admission:
        """One quota of 600 requests."""
        if self.refuse is not None:
            raise self.refuse
        self.admitted.append(invocation_id)
        return Admission(rates=(RateHeader("requests", 600, 599, 0.1),))

    async def finish(
        self,
        invocation_id: str,
        held: Sequence[Charge],
        settlements: Sequence[Settlement],
        keep: tuple[str, bytes, int] | None,
        claimed: str | None = None,
    ) -> None:
        """Nothing is kept."""

    async def look(self, invocation_id: str, cache_key: str) -> Looked:
        """There is no other process."""
        return Looked()

    async def renew(self, invocation_id: str, cache_key: str) -> None:
        """There is no claim."""

    async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
        """Nothing is scarce."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Nothing was scarce."""


class MemoryLedger:
    """Inferences by id; also the port through which runs are read back."""

    def __init__(self) -> None:
        self.inferences: dict[str, Inference] = {}

    async def intend(self, intent: Intent) -> None:
        """No stage here calls a model."""

    async def record(self, inference: Inference) -> None:
        """Keep it."""
        self.inferences[inference.id] = inference

    async def find(self, run_id: str) -> Run | None:
        """The run as the ledger tells it."""
        if (found := self.inferences.get(run_id)) is None:
            return None
        asked = found.invocation
        return Run(
            id=found.id,
            task=asked.task,
            fingerprint=asked.fingerprint,
            kind=asked.kind,
            caller_team=asked.caller.team,
            owner_team=asked.owner_team,
            payer_team=asked.payer_team,
            received_at=asked.received_at,
            decision=found.decision,
            attempts=found.attempts,
            cache=found.cache,
            duration_ms=found.duration_ms,
            trace_id=asked.trace_id,
        )

    async def roll_up(self, start: datetime, end: datetime, team: str | None) -> Sequence[UsageRow]:
        """Inferences per paying team and task."""
        counts: dict[tuple[str, str], int] = {}
        for inference in self.inferences.values():
            asked = inference.invocation
            if start <= asked.received_at < end and team in (None, asked.payer_team):
                counts[asked.payer_team, asked.task] = counts.get((asked.payer_team, asked.task), 0) + 1
        return [UsageRow(team=t, task=task, model=None, inferences=n) for (t, task), n in sorted(counts.items())]


class MemoryKeys:
    """Keys by id; `lookups` counts what the cache in front lets through."""

    def __init__(self, teams: "MemoryTeams", acts: "MemoryAudit") -> None:
        self.keys: dict[str, ApiKey] = {}
        self.lookups = 0
        self.down = False
        self._teams, self._acts = teams, acts

    async def find(self, key_id: str) -> ApiKey | None:
        """The key of that id."""
        self.lookups += 1
        if self.down:
            raise Unavailable("The key store does not answer.", retry_after_s=1)
        await asyncio.sleep(0)
        return self.keys.get(key_id)

    async def add(self, key: ApiKey, by: Actor = TERMINAL) -> None:
        """Store it."""
        if key.team not in self._teams.teams:
            raise NotFound(f"There is no team `{key.team}`.")
        self.keys[key.id] = key
        self._acts.note(by, "key_created", key.id)

    async def rotate(self, key_id: str, new: ApiKey, until: datetime, by: Actor = TERMINAL) -> None:
        """Store the new one, and refuse the old one from `until` on."""
        self.keys[key_id] = replace(self.keys[key_id], revoked_at=until)
        self.keys[new.id] = new
        self._acts.note(by, "key_rotated", new.id)

    async def of_team(self, team: str | None) -> Sequence[ApiKey]:
        """In the order in which they were added."""
        return [key for key in self.keys.values() if team in (None, key.team)]

    async def revoke(self, key_id: str, at: datetime, by: Actor = TERMINAL) -> None:
        """Refused from `at` on."""
        if key_id not in self.keys:
            raise NotFound("There is no such key.")
        self.keys[key_id] = replace(self.keys[key_id], revoked_at=at)
        self._acts.note(by, "key_revoked", key_id)


class MemoryTeams:
    """Teams by name."""

    def __init__(self) -> None:
        self.teams: dict[str, Team] = {}

    async def add(self, team: Team, by: Actor = TERMINAL) -> None:
        """Names are taken once."""
        if team.name in self.teams:
            raise Conflict(f"There is a team `{team.name}` already.")
        self.teams[team.name] = team

    async def all(self) -> Sequence[Team]:
        """By name."""
        return [self.teams[name] for name in sorted(self.teams)]

    async def set_limits(self, name: str, limits: Sequence[TeamLimit], by: Actor = TERMINAL) -> Team:
        """Replace them."""
        if name not in self.teams:
            raise NotFound(f"There is no team `{name}`.")
        self.teams[name] = replace(self.teams[name], limits=tuple(limits))
        return self.teams[name]


class MemoryAudit:
    """A list of acts, oldest first."""

    def __init__(self) -> None:
        self.acts: list[Act] = []

    def note(self, by: Actor, act: ActName, subject: str) -> None:
        """Append."""
        self.acts.append(Act(id=CLOCK.new_id(), at=CLOCK.now(), by=by, act=act, subject=subject, detail={}))

    async def latest(self, limit: int, before: str | None = None) -> Sequence[Act]:
        """Newest first."""
        return [act for act in reversed(self.acts) if before is None or act.id < before][:limit]


class MemoryVersions:
    """Every task was served once, with the fingerprint of `_loaded`."""

    async def of_task(self, task: str) -> Sequence[Version]:
        """The only one."""
        return [Version(task, FINGERPRINT, datetime(2026, 3, 1, tzinfo=UTC))]

    async def find(self, task: str, fingerprint: str) -> Version | None:
        """The only one, with a declaration that is nobody's but the owner's to read."""
        at = datetime(2026, 3, 1, tzinfo=UTC)
        return Version(task, FINGERPRINT, at, {"declaration": {}}) if fingerprint == FINGERPRINT else None


class MemoryQuality:
    """A period in which a hundred messages came, and nobody judged anything."""

    async def evidence(self, task: str, start: datetime, end: datetime) -> Evidence:
        """All were cleared by the rules, for nothing."""
        counted = Counted(fingerprint=FINGERPRINT, stage="rules", status="accepted", action="deliver", positive=False,
                          runs=100, cost_nano=0)  # fmt: skip
        return Evidence(counted=[counted], held=[], sampled=[], audit_nano={}, llm_stages={})

    async def opinions(self, task: str, start: datetime, end: datetime) -> Opinions:
        """One block of a known item."""
        return Opinions([Opinion("1", "gold", "ann", "block")], {"1": "block"}, [])


class MemoryFeedback:
    """A list."""

    def __init__(self) -> None:
        self.given: list[Feedback] = []

    async def add(self, feedback: Feedback) -> None:
        """Append."""
        self.given.append(feedback)


class Memory:
    """All ports and a key with every scope for each of three teams: `market`, `trust` (owner of the tasks), `other`."""

    def __init__(self) -> None:
        self.store, self.ledger = MemoryStore(), MemoryLedger()
        self.teams, self.feedback = MemoryTeams(), MemoryFeedback()
        self.acts = MemoryAudit()
        self.reviews, self.webhooks = MemoryReviews(), MemoryWebhooks(self.teams.teams)
        self.desk = MemoryDesk()
        self.keys = MemoryKeys(self.teams, self.acts)
        self.draining = False
        self.tokens: dict[str, str] = {}
        for team in ("market", "trust", "other"):
            self.teams.teams[team] = Team(team, datetime.now(UTC))
            self.tokens[team] = self.key(team, *SCOPES)

    def key(self, team: str, *scopes: str, expires_at: datetime | None = None) -> str:
        """The text of a new key."""
        key, text = mint(team, frozenset(scopes), datetime.now(UTC), expires_at)
        self.keys.keys[key.id] = key
        return text

    def doors(self, tasks: Sequence[LoadedTask] = (), **more: Any) -> Doors:
        """What `create_app` wants; `tasks` are served beside the two."""
        registry = Registry({task.name: task for task in (moderation(), routing(), *tasks)}, {})
        return Doors(
            engine=Engine(self.store, self.ledger, CLOCK, ZoneInfo("UTC"), permits=256),
            registry=lambda: registry,
            keys=self.keys,
            teams=self.teams,
            runs=self.ledger,
            feedback=self.feedback,
            usage=self.ledger,
            versions=MemoryVersions(),
            audit=self.acts,
            desk=Desk(self.reviews, self.reviews, lambda: registry, CLOCK),
            webhooks=self.webhooks,
            quality=MemoryQuality(),
            people=MemoryQuality(),
            raters=NltkRaters(),
            sessions=self.desk,
            exposure=self.desk,
            clock=CLOCK,
            draining=lambda: self.draining,
            **more,
        )


def moderation() -> LoadedTask:
    """A task with actions."""
    declared = Task(
        owner="trust",
        description="Does a message break the policy?",
        input="input.schema.json",
        output="output.schema.json",
        stage=(RulesStage(name="rules", file="rules.toml"),),
        positive="violation",
        actions={"clean": "deliver", "violation": "review", "deferred": "review"},
    )
    return _loaded("message-moderation", declared, _MODERATION_INPUT, "message")


def routing() -> LoadedTask:
    """A task without actions, for two teams, paid by its owner."""
    declared = Task(
        owner="trust",
        description="Which category is it?",
        input="input.schema.json",
        output="output.schema.json",
        stage=(RulesStage(name="rules", file="rules.toml"),),
        callers=("market",),
        payer="owner",
    )
    return _loaded("request-routing", declared, _ROUTING_INPUT, "text")


def replying(runner: Runner) -> LoadedTask:
    """A task that answers with text: whatever `runner` says of a `request` is its `reply`."""
    declared = Task(
        owner="trust",
        description="Write a reply.",
        input="input.schema.json",
        output="output.schema.json",
        stage=(ChainStage(name="llm", prompt="reply/write.v1", model="small", answer="text"),),
    )
    schema = {"type": "object", "required": ["request"], "properties": {"request": {"type": "string"}}}
    loaded = _loaded("reply", declared, schema, "request")
    output = {"type": "object", "properties": {"reply": {"type": "string"}}}
    return replace(loaded, steps=(Step(declared.stage[0], runner),), output_schema=output)


def _loaded(name: str, declared: Task, schema: dict[str, Any], field: str) -> LoadedTask:
    compiled = Schema(schema, "input.schema.json")
    return LoadedTask(
        name=name,
        declared=declared,
        steps=(Step(declared.stage[0], Scripted(field)),),
        input_schema=schema,
        output_schema={"type": "object"},
        input=compiled,
        output=Schema({"type": "object"}, "output.schema.json"),
        limits=(),
        examples=(),
        fingerprint=FINGERPRINT,
        config_hash="0123456789abcdef",
    )


QUOTA = QuotaExceeded("The quota of 600 requests per minute is used up.", retry_after_s=2.4)
