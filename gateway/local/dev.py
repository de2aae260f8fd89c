"""The embedded default: Valkey, the local LLM server and the gateway as children of one process, on free ports."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct
from rich.console import Console

from gateway.adapters.sql.migrate import upgrade
from gateway.local.child import Child, free_port
from gateway.local.fetch import fetch_model
from gateway.local.valkey import start_valkey
from gateway.settings import Settings

# Unpacking the model takes some twenty seconds on a quiet machine, and minutes on a busy one.
_LOADING_S = 600.0


class Running(Struct, frozen=True):
    """What was started. `model_command` starts the LLM server again, should somebody have killed it."""

    url: str
    llm_url: str
    database: str
    model_command: str
    gateway: Child
    llm: Child


@contextmanager
def running(settings: Settings, console: Console, port: int = 0) -> Iterator[Running]:
    """Start everything, in order of need; stop it in reverse. Raises ChildFailed with the end of the log."""
    state = settings.state_path
    state.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        model = fetch_model(settings.cache_path, console)
        with console.status("database"):
            asyncio.run(upgrade(settings.database, settings.home_path / "migrations"))
        with console.status("Valkey"):
            redis_url = stack.enter_context(start_valkey(state / "valkey"))
        llm_port, gateway_port = free_port(), port or free_port()
        llm_command = model_command(settings.home_path, model, llm_port)
        llm_url = f"http://127.0.0.1:{llm_port}"
        llm = _start(stack, "LLM server", llm_command, state / "logs" / "llm.log", {})
        gateway = _start(
            stack,
            "gateway",
            [sys.executable, "-m", "gateway", "serve"],
            state / "logs" / "gateway.log",
            {
                "GATEWAY_HOME": str(settings.home_path),
                "GATEWAY_DATABASE_URL": settings.database,
                "GATEWAY_REDIS_URL": redis_url,
                "GATEWAY_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(gateway_port),
                "GATEWAY_LEAVE_S": "0",
                "GATEWAY_REVIEW_UNDO_S": str(settings.review_undo_s),
                "LLM_URL": llm_url,
            },
        )
        url = f"http://127.0.0.1:{gateway_port}"
        with console.status("loading the LLM"):
            llm.wait_ready(f"{llm_url}/health", _LOADING_S)
        with console.status("loading the gateway"):
            gateway.wait_ready(f"{url}/health/ready", _LOADING_S)
        yield Running(url, llm_url, settings.database, " ".join(llm_command), gateway, llm)


def model_command(home: Path, model: Path, port: int) -> list[str]:
    """The command that serves `model` with every adapter found in the task folders."""
    command = [sys.executable, "-m", "gateway", "model", "serve", str(model), "--port", str(port)]
    for adapter in sorted(home.glob("tasks/*/adapter/adapter_config.json")):
        command += ["--adapter", f"{adapter.parent.parent.name}={adapter.parent}"]
    return command


def _start(stack: ExitStack, name: str, command: list[str], log: Path, env: dict[str, str]) -> Child:
    child = Child(name, command, log, env)
    stack.callback(child.stop)
    return child
