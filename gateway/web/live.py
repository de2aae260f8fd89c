"""An answer that is heard while it is made. The engine runs on its own: a listener who leaves stops nothing."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from msgspec.structs import replace

from gateway.core.engine import Engine
from gateway.core.errors import CascadeExhausted
from gateway.core.inference import Answer, Invocation
from gateway.core.loaded import LoadedTask

Part = dict[str, Any]


class Live:
    """One invocation under way, and the parts of its output as they come. Parts are asked for by one reader, once."""

    def __init__(self, engine: Engine, task: LoadedTask, invocation: Invocation) -> None:
        self.invocation = invocation
        self._parts: asyncio.Queue[Part | None] = asyncio.Queue()
        heard = replace(invocation, listener=self._parts.put_nowait)
        self._running = asyncio.create_task(engine.invoke(task, heard))
        self._running.add_done_callback(self._ended)
        self._first: Part | None = None

    async def speaks(self) -> bool:
        """Wait for the first part: False where the invocation ended without one."""
        self._first = await self._parts.get()
        return self._first is not None

    async def answer(self) -> Answer:
        """Wait for the end. Raises what the engine raises."""
        return await asyncio.shield(self._running)

    async def parts(self) -> AsyncIterator[Part]:
        """The parts, once it speaks; added up they are the output. Raises what the engine raises."""
        said: Part = {}
        part = self._first
        while part is not None:
            said = {**said, **{name: said.get(name, "") + text for name, text in part.items()}}
            yield part
            part = await self._parts.get()
        if rest := _rest(said, (await self.answer()).inference.decision.output, self.invocation.id):
            yield rest

    def _ended(self, running: "asyncio.Task[Answer]") -> None:
        self._parts.put_nowait(None)
        if not running.cancelled():
            running.exception()  # a listener who left reads it no more


def _rest(said: Part, output: Mapping[str, Any] | None, run_id: str) -> Part:
    """What was not heard yet. A stage that broke off may be followed by one that says something else."""
    whole = output or {}
    if not all(str(whole.get(name, "")).startswith(text) for name, text in said.items()):
        raise CascadeExhausted("The answer broke off, and another stage gave another one.", run_id=run_id)
    rest = {name: value[len(said.get(name, "")) :] if name in said else value for name, value in whole.items()}
    return {name: value for name, value in rest.items() if value or name not in said}
