"""What is broken: gateways bent by their environment, over a world whose model has two replicas."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from fault_server import serving
from prove.witness import Witness
from prove.world import Ground, World, world
from stack import MODELS
from tokenizers import Tokenizer

from chaos.events import Stage
from gateway.local.child import Child, free_port

TIMEOUT_S, DEADLINE_S = 1.0, 2.0
"""Of one try of the model, and of all of them."""


@asynccontextmanager
async def gateways(on: World, count: int, **env: str) -> AsyncIterator[list[tuple[str, Child]]]:
    """So many of them, bent by `env`."""
    with ExitStack() as stack:
        up = []
        for _ in range(count):
            port = free_port()
            given = {**on.settings, "GATEWAY_PORT": str(port), "GATEWAY_LEAVE_S": "0", "GATEWAY_SWEEP_S": "1", **env}
            child = Child("gateway", [sys.executable, "-m", "chaos.serve"], on.home / "logs" / f"{port}.log", given)
            stack.callback(child.stop)
            up.append((f"http://127.0.0.1:{port}", child))
        for url, child in up:
            await asyncio.to_thread(child.wait_ready, f"{url}/health/ready", 120)
        yield up


@asynccontextmanager
async def stage(on: Ground, seconds: float) -> AsyncIterator[Stage]:
    """A world whose model has two replicas, each behind a proxy of its own."""
    async with world(on) as each:
        second = Witness(Tokenizer.from_file(str(on.model / "tokenizer.json")), on.server)
        async with serving(second) as other:
            each.declare(TIMEOUT_S, DEADLINE_S)
            two = MODELS.replace('["env:LLM_URL"]', f'["{each.llm}", "{other}"]')
            (each.home / "models.toml").write_text(two, "utf-8")
            clock = each.home / "clock"
            clock.write_text("0", "utf-8")
            yield Stage(each, [each.model, second], clock, 0, seconds, [])
        await second.aclose()
