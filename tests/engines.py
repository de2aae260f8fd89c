"""The engine on a real store, with a ledger in memory and a stage that says who asked: for tests of what is shared."""

from collections.abc import Mapping
from typing import Any, Literal
from zoneinfo import ZoneInfo

from uuid_utils import uuid7

from gateway.adapters.redis import RedisStore
from gateway.adapters.schema import Schema
from gateway.core.cache import canonical_json
from gateway.core.cascade import Finding, Step
from gateway.core.clock import Clock
from gateway.core.engine import Engine
from gateway.core.inference import Answer, Caller, Inference, Intent, Invocation
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Meter
from gateway.core.task import Cache, RulesStage, Task

CLOCK = Clock(new_id=lambda: str(uuid7()))


class Echo:
    """Says which team's request it saw, and counts."""

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """Always `rude`."""
        self.runs += 1
        return Finding(label="rude", output={"seen": meter.invocation.caller.team, "message": item["message"]})


class Told:
    """A ledger that remembers."""

    def __init__(self) -> None:
        self.inferences: list[Inference] = []

    async def intend(self, intent: Intent) -> None:
        """No stage here calls a model."""

    async def record(self, inference: Inference) -> None:
        """Keep it."""
        self.inferences.append(inference)


def engine_on(store: RedisStore) -> Engine:
    """An engine of its own, as another process has."""
    return Engine(store, Told(), CLOCK, ZoneInfo("UTC"), permits=100)


def echoing(runner: Echo, fingerprint: str, scope: Literal["team", "task"] = "team") -> LoadedTask:
    """A task that holds everything, and keeps its answers."""
    stage = RulesStage(name="rules", file="rules.toml")
    declared = Task(
        owner="etiquette",
        description="d",
        input="i.json",
        output="o.json",
        stage=(stage,),
        positive="rude",
        actions={"rude": "review", "fine": "deliver", "deferred": "review"},
        cache=Cache(ttl_s=60, scope=scope),
    )
    anything = Schema({"type": "object"}, "any.json")
    return LoadedTask(
        name="manners",
        declared=declared,
        steps=(Step(stage, runner),),
        input_schema={},
        output_schema={},
        input=anything,
        output=anything,
        limits=(),
        examples=(),
        fingerprint=fingerprint,
        config_hash="",
    )


def asked(task: LoadedTask, team: str, message: str, **wishes: bool) -> Invocation:
    """A request of a team; `wishes` are no_cache and no_store."""
    item = {"message": message}
    return Invocation(
        id=CLOCK.new_id(),
        task=task.name,
        fingerprint=task.fingerprint,
        caller=Caller(team, "key", frozenset()),
        owner_team=task.declared.owner,
        payer_team=team,
        input=item,
        canonical=canonical_json(item),
        received_at=CLOCK.now(),
        **wishes,
    )


async def ask(engine: Engine, task: LoadedTask, team: str, message: str, **wishes: bool) -> Answer:
    """The answer to such a request."""
    return await engine.invoke(task, asked(task, team, message, **wishes))
