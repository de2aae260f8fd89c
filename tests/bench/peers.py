"""Beside LiteLLM's proxy: the same chat, the same instant model, the same driver, core and number of connections.

Both are asked over OpenAI's chat API. Ours has its key, the task's quota and budget, the ledger in sync and the task's
cheap stages before the model; LiteLLM has its master key, alone and with the limits of requests and tokens that its
router keeps in Redis. It has no ledger here: its database client fetches a binary when it is first used.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

from msgspec import Struct
from rich.table import Table

from bench import messages
from bench.driver import Driven, Target, drive
from bench.ground import TASK, Ground, Served, cpu_s, on_cores
from bench.measure import CLIENTS, Lengths
from gateway.local.child import Child, free_port
from gateway.local.valkey import find_server

KEY = "sk-bench"
_CONFIG = """
model_list:
  - model_name: instant
    litellm_params: {{model: openai/instant, api_base: {stub}/v1, api_key: none{limits}}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false, num_retries: 0}}
{router}
"""
_ROUTER = "router_settings: {{routing_strategy: usage-based-routing-v2, redis_host: 127.0.0.1, redis_port: {port}}}"


class Peer(Struct, frozen=True):
    """One line of the table."""

    name: str
    seen: Driven
    cpu_ms: float
    memory_mb: float


async def compared(ground: Ground, python: Path, lengths: Lengths) -> Table:
    """Ours and LiteLLM, that of the environment whose interpreter is `python`."""
    peers = [await _ours(ground, lengths)]
    with ground.stub() as stub:
        for name, limited in (("LiteLLM", False), ("LiteLLM, limits in Redis", True)):
            with _litellm(ground, python, stub, limited) as served:
                to = Target(served.port, "/v1/chat/completions", KEY)
                peers.append(await _peer(name, served, to, repeat(_chat("instant", "Hello")), lengths))
    table = Table("gateway", "req/s", "p50", "p99 ms", "CPU ms", "MB", "answers", title=f"Chat, {CLIENTS} connections")
    for peer in peers:
        seen, answers = peer.seen, ", ".join(f"{count} × {status}" for status, count in peer.seen.statuses.items())
        quantiles = (f"{seen.quantile_ms(share):.1f}" for share in (0.5, 0.99))
        table.add_row(
            peer.name, f"{seen.per_s:,.0f}", *quantiles, f"{peer.cpu_ms:.2f}", f"{peer.memory_mb:.0f}", answers
        )
    return table


async def _ours(ground: Ground, lengths: Lengths) -> Peer:
    bodies = (_chat(f"task:{TASK}", _input(text)) for text in messages.open_())
    with ground.stub() as llm, ground.gateway(llm, [ground.gateway_core]) as served:
        return await _peer("Taskgate", served, Target(served.port, "/v1/chat/completions", ground.key), bodies, lengths)


async def _peer(name: str, served: Served, to: Target, bodies: Iterator[bytes], lengths: Lengths) -> Peer:
    await drive(to, bodies, CLIENTS, lengths.warm)
    before_s = cpu_s(served.processes)
    seen = await drive(to, bodies, CLIENTS, lengths.full)
    used_s = cpu_s(served.processes) - before_s
    return Peer(name, seen, used_s / seen.statuses.total() * 1000, served.resident_mb)


@contextmanager
def _litellm(ground: Ground, python: Path, stub: str, limited: bool) -> Iterator[Served]:
    """Its proxy on the gateway's core; a Valkey of its own, over TCP, beside the other stores."""
    port, redis_port = free_port(), free_port()
    limits = ", rpm: 100000000, tpm: 100000000000" if limited else ""
    router = _ROUTER.format(port=redis_port) if limited else ""
    config = ground.home / f"litellm-{port}.yaml"
    config.write_text(_CONFIG.format(stub=stub, limits=limits, key=KEY, router=router), "utf-8")
    with on_cores([ground.other_core]):
        valkey = Child("Valkey", [find_server(), "--port", str(redis_port), "--save", ""], ground.home / "logs/valkey")
    try:
        # Its price list is part of the package; without this it asks the internet for a newer one.
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
        command = [
            str(python.with_name("litellm")),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with ground.served("litellm", command, env, port, "/health/liveliness", [ground.gateway_core]) as served:
            yield served
    finally:
        valkey.stop()


def _input(text: str) -> str:
    return json.dumps({"message": text, "sender_role": "customer"})


def _chat(model: str, text: str) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()


def found(python: str) -> Path:
    """The interpreter beside which LiteLLM is installed. Ends the process where it is not."""
    path = Path(python)
    if not path.with_name("litellm").exists():
        sys.exit(
            f"no LiteLLM beside {python or 'nothing'}: `make bench-peers` installs it in an environment of its own"
        )
    return path
