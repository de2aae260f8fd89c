"""The systems that are compared, each saying of the same rows what it found; decisions are made by `core.cascade`.

Every stage is run by the adapter that serves it, the LLM's on log-probs that were read for every row beforehand
(`readings`). The cascade is the gateway's, with the task's own thresholds.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from langchain_core.runnables import Runnable, RunnableConfig
from msgspec import Struct, structs
from rich.progress import track

from gateway.adapters.calibration import UNCALIBRATED, Platt, read_calibration
from gateway.adapters.chain import ChainRunner, LabelParser, LabelRules
from gateway.adapters.label_ids import LabelIds
from gateway.adapters.model_port import Answer
from gateway.adapters.schema import Schema
from gateway.core import cascade, registry
from gateway.core.cascade import Finding, Outcome, Runner, StageFailed, Step
from gateway.core.clock import Clock
from gateway.core.inference import Caller, Intent, Invocation
from gateway.core.loaded import LoadedModel, LoadedTask, StageFiles, Validator
from gateway.core.meter import Meter, Settlement
from gateway.core.prompts import parse_prompt
from gateway.core.quotas import Charge
from gateway.core.task import ChainStage, CnnStage, RulesStage, Stage, Task
from gateway.lab.readings import Asked, Reading, input_key, prompt_text
from gateway.lab.rows import LabError, Row

_IDS = itertools.count()
_CLOCK = Clock(new_id=lambda: str(next(_IDS)))
_AT_ONCE = 64
_WORTH_A_BAR = 20


class Loaded(Struct, frozen=True):
    """A task with the stages that the lab looks into by name."""

    task: LoadedTask
    model: LoadedModel
    home: Path

    @property
    def chain(self) -> ChainStage:
        """The task's LLM stage."""
        return next(step.stage for step in self.task.steps if isinstance(step.stage, ChainStage))

    @property
    def positive(self) -> str:
        """The label that scores are probabilities of."""
        assert self.task.declared.positive is not None, "load_task has checked it"
        return self.task.declared.positive

    @property
    def folder(self) -> Path:
        """The task's own folder."""
        return self.home / "tasks" / self.task.name

    def asked(self, base: Path, adapter: Path | None, prompt: str | None = None) -> Asked:
        """What the LLM stage asks, of the tuned model or, with another prompt and no adapter, of the bare base."""
        return Asked(
            base_name=f"{self.model.declared.model_id}@{self.model.declared.revision or 'unpinned'}",
            base=base,
            adapter=adapter,
            prompt=prompt_text(self.home, prompt or self.chain.prompt),
            chat_format=self.model.declared.chat_format,
            labels=self.chain.labels,
            policies=self.chain.policies,
            positive=self.positive,
        )

    def platt(self) -> Platt:
        """The calibration of the LLM stage; the plain logistic where it has none. Raises LabError."""
        if self.chain.calibration is None:
            return UNCALIBRATED
        path = self.folder / self.chain.calibration
        try:
            return read_calibration(path.read_bytes())
        except (OSError, ValueError) as error:
            raise LabError(f"{path}: {error}") from error


class Fixed(Struct, frozen=True):
    """A stage whose finding, or failure, for the one item at hand is known already."""

    found: Finding | StageFailed

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """Say it."""
        if isinstance(self.found, StageFailed):
            raise self.found
        return self.found


def load_task(home: Path, name: str) -> Loaded:
    """The task as serving would load it, but that its LLM is not called. Raises InvalidConfig, LabError."""
    loaded = registry.load(home, OfflineBuilder())
    task = loaded.task(name)
    chains = [step.stage for step in task.steps if isinstance(step.stage, ChainStage)]
    if task.declared.positive is None or len(chains) != 1 or chains[0].answer != "label":
        raise LabError(f"tasks/{name}: the lab needs a task with a positive label and one chain stage for it")
    return Loaded(task, loaded.models[chains[0].model], home)


def item_of(row: Row) -> dict[str, Any]:
    """The task's input, as a caller would send it."""
    return {"message": row.text, "sender_role": row.sender_role}


async def findings(runner: Runner, rows: Sequence[Row], what: str) -> list[Finding | StageFailed]:
    """What a stage finds of each row, or how it failed; many at once, as in serving."""
    meter = offline_meter()
    starts = range(0, len(rows), _AT_ONCE)
    found: list[Finding | StageFailed] = []
    for start in track(starts, f"{what}: {len(rows)} rows", disable=len(starts) < _WORTH_A_BAR):
        found += await asyncio.gather(*(_found(runner, row, meter) for row in rows[start : start + _AT_ONCE]))
    return found


async def _found(runner: Runner, row: Row, meter: Meter) -> Finding | StageFailed:
    try:
        return await runner.run(item_of(row), meter)
    except StageFailed as failed:
        return failed


def recorded_chain(loaded: Loaded, readings: Mapping[str, Reading]) -> ChainRunner:
    """The chain stage as it serves, over a model that answers from `readings`. Raises LabError."""
    stage = loaded.chain
    rules = LabelRules(
        tokens=LabelIds({label: label for label in stage.labels}, {policy: policy for policy in stage.policies}),
        positive=loaded.positive,
        calibration=loaded.platt(),
        min_label_mass=stage.min_label_mass,
    )
    prompt = parse_prompt(stage.prompt, prompt_text(loaded.home, stage.prompt))
    return ChainRunner(stage, prompt.variables, _Recorded(readings) | LabelParser(rules))


async def decide(task: Task, stages: Sequence[Stage], found: Sequence[Finding | StageFailed]) -> Outcome:
    """The cascade's outcome for one item whose findings, one per stage, are known."""
    steps = [Step(stage, Fixed(finding)) for stage, finding in zip(stages, found, strict=True)]
    return await cascade.run(task, steps, {}, offline_meter(), _CLOCK)


def with_thresholds(stages: Sequence[Stage], *, prefilter_below: float | None = None) -> list[Stage]:
    """The stages with another threshold at the prefilter."""
    return [
        structs.replace(stage, accept_below=prefilter_below)
        if isinstance(stage, CnnStage) and prefilter_below is not None
        else stage
        for stage in stages
    ]


def offline_meter() -> Meter:
    """A meter for stages that make no model calls."""
    nobody = Caller("lab", "lab", frozenset())
    asked = Invocation(
        id="lab", task="lab", fingerprint="", caller=nobody, owner_team="lab", payer_team="lab", input={},
        canonical=b"", received_at=_CLOCK.now(),
    )  # fmt: skip
    return Meter(asked, (), _NoStore(), _NoStore(), _CLOCK, ZoneInfo("UTC"))


class _Recorded(Runnable[Any, str]):
    """A model whose answers were read beforehand, looked up by the item."""

    def __init__(self, readings: Mapping[str, Reading]) -> None:
        self._readings = readings

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        """Raises KeyError for an item that was not read."""
        return Answer.of(self._readings[input_key(input["sender_role"], input["message"])].reply())

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        """The same; it is too short for a thread."""
        return self.invoke(input)


class _NoStore:
    """Nothing is spent in the lab: a stage that tries is not one of the cheap ones."""

    async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
        raise StageFailed("model_call_in_the_lab")

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        raise StageFailed("model_call_in_the_lab")

    async def intend(self, intent: Intent) -> None:
        raise StageFailed("model_call_in_the_lab")


class OfflineBuilder:
    """The stages that serve, but for the LLM's."""

    def schema(self, document: Any, file: str) -> Validator:
        return Schema(document, file)

    def stage(self, stage: Stage, files: StageFiles, place: str) -> Runner:
        if isinstance(stage, RulesStage):
            from gateway.adapters.rules import build_rules

            return build_rules(stage, files, place)
        if isinstance(stage, CnnStage):
            from gateway.adapters.cnn import build_cnn

            return build_cnn(stage, files, place)
        return Fixed(StageFailed("not_read"))

    def conversation(self, stage: ChainStage, model: LoadedModel) -> Runner:
        return Fixed(StageFailed("not_read"))
