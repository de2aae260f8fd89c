"""Do the model servers serve what models.toml pins? Asked at the start and ever after.

A replica that serves something else is taken out; one that does not answer is the breaker's matter.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from gateway.core.registry import LoadedModel, Registry
from gateway.core.task import ChainStage

log = structlog.get_logger()

ASK_S = 15.0


class Pins:
    """What was found when the servers were asked last.

    `verify` says in words what differs at the servers of a model; it raises nothing for a server that is away.
    """

    def __init__(
        self, registry: Callable[[], Registry], verify: Callable[[LoadedModel], Awaitable[Sequence[str]]]
    ) -> None:
        self._registry, self._verify = registry, verify
        self.differing: Mapping[str, Sequence[str]] = {}

    async def follow(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                await self.ask()
            except Exception:
                # Nothing that a server says may end the asking.
                log.exception("models_not_verified")
            await asyncio.sleep(ASK_S)

    async def ask(self) -> None:
        """Ask the servers of every model that a task uses."""
        models = used_models(self._registry())
        said = await asyncio.gather(*map(self._verify, models))
        differing = {model.name: words for model, words in zip(models, said, strict=True) if words}
        if differing != self.differing:
            log.warning("models_differ", models=differing)
        self.differing = differing


def used_models(registry: Registry) -> list[LoadedModel]:
    """The models that any task's chain names, and those that are asked without one."""
    stages = (step.stage for task in registry.every.values() for step in task.steps)
    names = {name for stage in stages if isinstance(stage, ChainStage) for name in stage.models}
    return [registry.models[name] for name in sorted(names)]
