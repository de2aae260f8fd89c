"""What configuration becomes once it is read and built: tasks and models that are ready to answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from gateway.core.cascade import Runner, Step
from gateway.core.meter import MeteredModel
from gateway.core.prices import Tariff
from gateway.core.prompts import Prompt
from gateway.core.quotas import Limit
from gateway.core.task import ChainStage, Example, Model, Stage, Task


class Validator(Protocol):
    """A compiled JSON schema."""

    def violations(self, value: object) -> Sequence[tuple[str, str]]:
        """(JSON path, message) of each violation; empty for a valid value."""


class StageFiles(Struct, frozen=True):
    """What a stage may look at while it is built. `folder` is the task's own; `output` checks its answers; `fallback`
    are the models of the stage's own `fallback`, in that order.
    """

    task_name: str
    task: Task
    folder: Path
    prompt: Prompt | None = None
    model: "LoadedModel | None" = None
    output_schema: Mapping[str, Any] = {}
    output: Validator | None = None
    fallback: "tuple[LoadedModel, ...]" = ()


class Builder(Protocol):
    """Builds what configuration speaks of; the adapters stand behind it. Raises InvalidConfig with all problems."""

    def schema(self, document: Any, file: str) -> Validator:
        """Compile a JSON schema."""

    def stage(self, stage: Stage, files: StageFiles, place: str) -> Runner:
        """Build a stage; `place` is its path in task.toml, for problems."""

    def conversation(self, stage: ChainStage, model: "LoadedModel") -> Runner:
        """Build the one stage of a model that is asked without a task: its item is `direct.CONVERSATION`."""


class LoadedModel(Struct, frozen=True):
    """An entry of models.toml, with its tariff. `folder` is the home that its paths are relative to."""

    name: str
    declared: Model
    tariff: Tariff
    folder: Path

    @property
    def metered(self) -> MeteredModel:
        """What the meter needs of it."""
        return MeteredModel(self.name, self.tariff)


class LoadedTask(Struct, frozen=True):
    """A task that is ready to answer. `config` is everything that `fingerprint` is the hash of, for people;
    `policy_texts` are the policies' own words, by name.
    """

    name: str
    declared: Task
    steps: tuple[Step, ...]
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    input: Validator
    output: Validator
    limits: tuple[Limit, ...]
    examples: tuple[Example, ...]
    fingerprint: str
    config_hash: str
    config: Mapping[str, Any] = {}
    policy_texts: Mapping[str, str] = {}
