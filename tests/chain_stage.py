"""A chain stage over some URL, and a meter that keeps what it was told: for tests of the model doors."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from uuid_utils import uuid7

from gateway.adapters.schema import Schema
from gateway.core.clock import Clock
from gateway.core.inference import Caller, Intent, Invocation, ModelCall
from gateway.core.loaded import LoadedModel, StageFiles
from gateway.core.meter import Meter
from gateway.core.prices import Tariff
from gateway.core.prompts import parse_prompt
from gateway.core.task import ChainStage, Model, Policy, Price, Task

PROMPT = parse_prompt(
    "t/p.v1", "You judge messages.\nC abuse\nD spam\n---\nFrom: {{sender_role}}\nMessage: {{message}}\n"
)
ITEM = {"sender_role": "customer", "message": "Can you come at nine?"}
PRICE = Price(start=date(2020, 1, 1), input_per_million="1", output_per_million="2")


class Books:
    """Reservations and intents that are granted and kept."""

    def __init__(self) -> None:
        self.intents: list[Intent] = []

    async def reserve(self, reservation_id: str, charges: Any) -> None:
        """Granted: these tests set no limits."""

    async def settle(self, settlements: Any) -> None:
        """Nothing was reserved."""

    async def intend(self, intent: Intent) -> None:
        self.intents.append(intent)


class Metered:
    """A meter of one attempt, with the calls made so far."""

    def __init__(self, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.books = Books()
        invocation = Invocation(
            id=str(uuid7()),
            task="t",
            fingerprint="f",
            caller=Caller("team", "key", frozenset()),
            owner_team="owner",
            payer_team="team",
            input=ITEM,
            canonical=b"",
            received_at=datetime.now(UTC),
            listener=listener,
        )
        clock = Clock(lambda: str(uuid7()))
        self.meter = Meter(invocation, [], self.books, self.books, clock, ZoneInfo("UTC"))
        self.meter.begin("attempt")

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return self.meter.end()

    @property
    def outcomes(self) -> list[str]:
        return [call.outcome for call in self.calls]


def declared_stage(**fields: Any) -> ChainStage:
    """A two-label stage, patient enough for a busy machine; `fields` replace its own."""
    own: dict[str, Any] = {
        "labels": {"clean": "A", "violation": "B"},
        "min_label_mass": 0.0,
        "timeout_s": 30.0,
        "deadline_s": 60.0,
    }
    return ChainStage(name="llm", prompt="t/p.v1", model="m", **(own | fields))


def declared_task(stage: ChainStage, positive: str | None = "violation") -> Task:
    """A task of that one stage; every policy that the stage names exists."""
    policy = {name: Policy(severity=1, text="p.md") for name in stage.policies}
    return Task(
        owner="o",
        description="d",
        input="i.json",
        output="o.json",
        stage=(stage,),
        positive=positive,
        actions={"clean": "deliver", "violation": "review", "deferred": "review"},
        policy=policy,
    )


def declared_model(*urls: str, **fields: Any) -> Model:
    """A model at these URLs; `fields` replace the defaults."""
    own: dict[str, Any] = {"kind": "tgi", "model_id": "tiny"}
    return Model(urls=urls, price=(PRICE,), **(own | fields))


def files_for(
    stage: ChainStage,
    model: Model,
    folder: Path,
    positive: str | None = "violation",
    output: dict[str, Any] | None = None,
) -> StageFiles:
    """What the registry hands to a builder; `output` is the output schema."""
    loaded = LoadedModel("m", model, Tariff(model.price), folder)
    schema = output or {"type": "object"}
    return StageFiles(
        "t", declared_task(stage, positive), folder, PROMPT, loaded, schema, Schema(schema, "output.json")
    )
