"""What tasks are built of: their stages, and the registry that holds them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import uuid_utils
from msgspec import Struct

from gateway.adapters.schema import Schema
from gateway.adapters.sql.ledger import open_ledger
from gateway.core.cascade import Runner
from gateway.core.clock import Clock
from gateway.core.examples import ExamplesRun, NoBook, run_examples
from gateway.core.loaded import LoadedModel, StageFiles, Validator
from gateway.core.problems import InvalidConfig
from gateway.core.registry import Registry, load
from gateway.core.reuse import Reuse
from gateway.core.sweep import outlived
from gateway.core.task import ChainStage, CnnStage, RulesStage, Stage
from gateway.core.telemetry import ReplicaState
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.adapters.chain_builder import ChainBuilder


class Stages:
    """Core's Builder. Heavy adapters are imported only where a task uses them; chains share their doors."""

    def __init__(self) -> None:
        self._chains: ChainBuilder | None = None
        self._reuse = Reuse()

    def schema(self, document: Any, file: str) -> Validator:
        """Compile a JSON schema."""
        return Schema(document, file)

    def stage(self, stage: Stage, files: StageFiles, place: str) -> Runner:
        """Build the runner of a declared stage."""
        match stage:
            case RulesStage():
                from gateway.adapters.rules import build_rules

                return self._reuse.stage(stage, files, lambda: build_rules(stage, files, place))
            case CnnStage():
                from gateway.adapters.cnn import build_cnn

                return self._reuse.stage(stage, files, lambda: build_cnn(stage, files, place))
            case ChainStage():
                return self._chain_builder().build(stage, files, place)

    def conversation(self, stage: ChainStage, model: LoadedModel) -> Runner:
        """Build the stage of a model that is asked without a task."""
        from gateway.adapters.conversation import build_conversation

        return build_conversation(self._chain_builder(), stage, model)

    async def verify(self, model: LoadedModel) -> tuple[str, ...]:
        """What the model's servers serve other than the pinned model, in words."""
        return await self._chain_builder().verify(model)

    def urls(self, model: LoadedModel) -> Sequence[str]:
        """Where the replicas of a model are."""
        return self._chain_builder().urls(model)

    def only(self, model: LoadedModel, url: str) -> AbstractContextManager[None]:
        """Within the block, this replica is asked and no other."""
        return self._chain_builder().only(model, url)

    def bar(self, model: LoadedModel, url: str, why: str, said_by: str) -> None:
        """Take a replica out, or in again where nothing is against it any more."""
        self._chain_builder().bar(model, url, why, said_by)

    def replica_states(self) -> Sequence[ReplicaState]:
        """The replicas of all models, as this process sees them."""
        return list(self._chains.replica_states()) if self._chains is not None else ()

    async def aclose(self) -> None:
        """Close the connections to model servers."""
        if self._chains is not None:
            await self._chains.aclose()

    def _chain_builder(self) -> "ChainBuilder":
        if self._chains is None:
            from gateway.adapters.chain_builder import ChainBuilder

            self._chains = ChainBuilder()
        return self._chains


def load_registry(settings: Settings, stages: Stages | None = None) -> Registry:
    """Everything under the home folder, built. Raises InvalidConfig with every problem."""
    registry = load(settings.home_path, stages or Stages())
    if problems := outlived(registry.every.values(), settings.orphan_after_s):
        raise InvalidConfig(problems)
    return registry


class Checked(Struct, frozen=True):
    """How each task's examples went, and in which words a model server differs from what models.toml pins. `recorded`
    says whether the calls are in a ledger.
    """

    examples: dict[str, ExamplesRun]
    differences: tuple[str, ...]
    recorded: bool


async def check_online(settings: Settings) -> Checked:
    """Ask every model server what it serves, and run all examples. Raises InvalidConfig, Unavailable.

    Where the settings name a database, its ledger has every call, which the platform pays.
    """
    stages = Stages()
    registry, clock = load_registry(settings, stages), Clock(new_id=new_id)
    ledger = open_ledger(settings.database_url) if settings.database_url else None
    try:
        differences = [said for model in registry.models.values() for said in await stages.verify(model)]
        checked = [task for task in registry.tasks.values() if task.examples]
        examples = {task.name: await run_examples(task, clock, ledger or NoBook()) for task in checked}
    finally:
        await stages.aclose()
        if ledger is not None:
            await ledger.aclose()
    return Checked(examples, tuple(differences), ledger is not None)


def new_id() -> str:
    """A UUIDv7: ids sort by the time at which they were made."""
    return str(uuid_utils.uuid7())
