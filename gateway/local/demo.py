"""`make demo`: a dozen messages through the real thing, and a table of what happened to them."""

import asyncio
import shlex
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from gateway.adapters.sql.access import new_key, opened
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.core.webhooks import Webhook, new_secret
from gateway.local.dev import Running, running
from gateway.local.receiver import receiving
from gateway.settings import Settings

TASK, TEAM = "message-moderation", "demo"
# Long enough to try it, short enough to wait for the outcome.
_UNDO_S = 5.0


class DemoMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the task's demo.jsonl: an input and the action that it must get."""

    input: dict[str, Any]
    action: str


def demo(settings: Settings, console: Console, stay: bool) -> bool:
    """Start everything, send the demo messages, print the table. Returns whether every action was the expected one."""
    messages = msgspec.json.decode(_lines(settings.home_path / "tasks" / TASK / "demo.jsonl"), type=list[DemoMessage])
    secret = new_secret()
    with running(replace(settings, review_undo_s=_UNDO_S), console) as up, receiving(secret, console) as hook:
        key = asyncio.run(new_key(up.database, TEAM, frozenset({"invoke", "read", "review", "finance"})))
        asyncio.run(_hear(up.database, hook, secret))
        _write_env(settings.state_path / "env", up.url, key)
        good = _send_all(console, up, key, messages)
        _explain(console, settings, up)
        _invite(console, settings, up)
        if stay:
            _wait(console, up)
    return good


def _send_all(console: Console, up: Running, key: str, messages: list[DemoMessage]) -> bool:
    table = Table(title=f"POST /tasks/{TASK}/invoke", expand=True)
    table.add_column("message", no_wrap=True, overflow="ellipsis", ratio=1)
    for heading in ("decided by", "score", "action", "cost", "ms", ""):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("score", "cost", "ms") else "left")
    good = True
    with httpx.Client(base_url=up.url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        for message in messages:
            start_s = time.perf_counter()
            metadata = client.post(f"/tasks/{TASK}/invoke", json={"input": message.input}).json().get("metadata", {})
            took_ms = (time.perf_counter() - start_s) * 1000
            expected = metadata.get("action") == message.action
            good = good and expected
            table.add_row(*_row(message, metadata, took_ms, expected))
    console.print(table)
    return good


def _row(message: DemoMessage, metadata: dict[str, Any], took_ms: float, expected: bool) -> tuple[str, ...]:
    score = metadata.get("score")
    return (
        message.input["message"],
        metadata.get("stage") or metadata.get("reason") or "",
        "" if score is None else f"{score:.3f}",
        metadata.get("action") or "",
        metadata.get("usage", {}).get("cost", ""),
        f"{took_ms:.1f}",
        "[green]✓[/]" if expected else f"[red]✗ expected {message.action}[/]",
    )


def _explain(console: Console, settings: Settings, up: Running) -> None:
    body = '{"input": {"sender_role": "customer", "message": "Can you come on Friday?"}}'
    env = settings.state_path / "env"
    console.print("\nTry one of your own:\n")
    console.out(
        f". {shlex.quote(str(env))}\n"
        f'curl -s "$GATEWAY_URL/tasks/{TASK}/invoke" -H "Authorization: Bearer $GATEWAY_KEY" \\\n'
        f"  -H 'Content-Type: application/json' -d '{body}'"
    )
    console.print(f"\nAPI description: {up.url}/schema    logs: {settings.state_path / 'logs'}")
    console.print(f"The LLM server is process {up.llm.process.pid}. Stop it, send a message, start it again with:")
    console.out(up.model_command)


def _invite(console: Console, settings: Settings, up: Running) -> None:
    """Where the held messages wait, and a key of the team that owns the task."""
    declared = tomllib.loads((settings.home_path / "tasks" / TASK / "task.toml").read_text("utf-8"))
    key = asyncio.run(new_key(up.database, declared["owner"], frozenset({"review"})))
    console.print(
        "\nHeld messages wait at the reviewer's page. Its outcomes are printed here, once nobody can undo them:"
    )
    console.out(f"{up.url}/desk\n{key}")


async def _hear(database: str, url: str, secret: str) -> None:
    async with opened(database) as db:
        await SqlWebhooks(db).put(Webhook(TEAM, url, secret, datetime.now(UTC)))


def _wait(console: Console, up: Running) -> None:
    console.print("\n[bold]Ctrl-C ends the demo.[/]")
    try:
        up.gateway.process.wait()
    except KeyboardInterrupt:
        console.print("stopping")


def _write_env(path: Path, url: str, key: str) -> None:
    path.touch(mode=0o600)
    path.write_text(f"export GATEWAY_URL={shlex.quote(url)}\nexport GATEWAY_KEY={shlex.quote(key)}\n", "utf-8")


def _lines(path: Path) -> bytes:
    """JSON Lines as one JSON array."""
    return b"[" + b",".join(line for line in path.read_bytes().splitlines() if line.strip()) + b"]"
