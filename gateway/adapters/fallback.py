"""Models in order: where the servers of the first cannot answer, the next one is asked."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from gateway.adapters.model_port import meant, within
from gateway.core.cascade import Finding, Runner, StageFailed
from gateway.core.meter import Meter

# What a server did not do, as against what it said: an answer without the labels may be the message's own doing, and
# must not shop around for a model that it fools.
_SILENT = frozenset({"model_unavailable", "model_overloaded", "model_timeout", "model_error", "model_answer_invalid"})


class Fallback(Struct, frozen=True):
    """A model's runner, with its own labels and calibration."""

    model: str
    runner: Runner


class FallbackRunner:
    """One stage over several models. Each gets an equal share of the time that is left, so that the last has some."""

    def __init__(self, models: Sequence[Fallback], deadline_s: float) -> None:
        self.models = tuple(models)
        self._deadline_s = deadline_s

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """The finding of the first model that gives one. Raises the last one's StageFailed; else as its runners do."""
        if (name := meant()) is not None:
            return await next(each for each in self.models if each.model == name).runner.run(item, meter)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._deadline_s
        for left in range(len(self.models), 1, -1):
            try:
                with within(deadline=loop.time() + (end - loop.time()) / left):
                    return await self.models[-left].runner.run(item, meter)
            except StageFailed as failed:
                if failed.begun or failed.reason not in _SILENT:
                    raise
        with within(deadline=end):
            return await self.models[-1].runner.run(item, meter)
