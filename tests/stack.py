"""Whole gateways as processes, on a home folder made on the spot."""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from corner import PATIENT_S
from msgspec import Struct

from gateway.adapters.sql.access import new_key
from gateway.local.child import Child, free_port

ROOT = Path(__file__).parent.parent
MIGRATIONS = ROOT / "migrations"
# A tokenizer.json for tests whose model is only spoken for: it is there before any model is made.
WORDS = ROOT / "tasks/message-moderation/adapter"

MODELS = """
[tiny]
kind = "tgi"
urls = ["env:LLM_URL"]
model_id = "tiny"
tokenizer = "tokenizer.json"
[[tiny.price]]
from = 2026-01-01
input_per_million = "1.00"
output_per_million = "2.00"
"""
# The model is random: whatever it says is rude (`accept_above = 0`), and its mass on the labels is small.
MANNERS = """
owner = "etiquette"
description = "Is it rude?"
input = "input.json"
output = "output.json"
positive = "rude"

[[stage]]
name = "rules"
kind = "rules"
file = "rules.toml"

[[stage]]
name = "llm"
kind = "chain"
prompt = "manners/ask.v1"
model = "tiny"
labels = { fine = "A", rude = "B" }
accept_above = 0.0
min_label_mass = 0.0

[actions]
fine = "deliver"
rude = "review"
deferred = "review"

[cache]
ttl_s = 60
"""
RULES = """
[[rule]]
name = "thanks"
label = "fine"
patterns = ['\\bthank you\\b']
"""
FILES = {
    "models.toml": MODELS,
    "prompts/manners/ask.v1.md": "Is it rude?\n---\n{{message}}\n",
    "tasks/manners/task.toml": MANNERS,
    "tasks/manners/input.json": """{"type": "object", "properties": {"message": {"type": "string"}},
        "required": ["message"], "additionalProperties": false}""",
    "tasks/manners/output.json": '{"type": "object"}',
    "tasks/manners/rules.toml": RULES,
}


def make_home(folder: Path, tokenizer: Path, files: Mapping[str, str] | None = None) -> Path:
    """A home with the task `manners`; `files` add to it or replace its files."""
    home_of(folder, {**FILES, **(files or {})})
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


def home_of(folder: Path, files: Mapping[str, str]) -> Path:
    """A home with these files, a folder of prompts and the migrations."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (folder / "prompts").mkdir(exist_ok=True)
    if not (folder / "migrations").exists():
        (folder / "migrations").symlink_to(MIGRATIONS)
    return folder


class Gateway(Struct, frozen=True):
    """A running gateway process."""

    url: str
    child: Child

    def client(self, key: str) -> httpx.AsyncClient:
        """A client that calls with `key`."""
        return httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=60)


@contextmanager
def gateway(home: Path, database: str, redis: str, llm: str, **settings: str) -> Iterator[Gateway]:
    """`python -m gateway serve` on a free port, until the end of the block."""
    port = free_port()
    env = {
        "GATEWAY_HOME": str(home),
        "GATEWAY_DATABASE_URL": database,
        "GATEWAY_REDIS_URL": redis,
        "GATEWAY_REDIS_TIMEOUT_S": str(PATIENT_S),
        "GATEWAY_PORT": str(port),
        "GATEWAY_LEAVE_S": "0",
        "LLM_URL": llm,
        "PYTHONPATH": str(ROOT),
        **{f"GATEWAY_{name.upper()}": value for name, value in settings.items()},
    }
    child = Child("gateway", [sys.executable, "-m", "gateway", "serve"], home / "logs" / f"{port}.log", env)
    url = f"http://127.0.0.1:{port}"
    try:
        child.wait_ready(f"{url}/health/ready", 120)
        yield Gateway(url, child)
    finally:
        child.stop()


@contextmanager
def llm_process(model: Path, log: Path, port: int | None = None) -> Iterator[tuple[str, Child]]:
    """The local LLM server as a process that can be killed: its URL and the process."""
    port = port or free_port()
    command = [sys.executable, "-m", "gateway", "model", "serve", str(model), "--port", str(port)]
    child = Child("LLM server", command, log, {"PYTHONPATH": str(ROOT)})
    url = f"http://127.0.0.1:{port}"
    try:
        child.wait_ready(f"{url}/health", 120)
        yield url, child
    finally:
        child.stop()


def key_for(database: str, team: str = "shop", *scopes: str) -> str:
    """A new key, for use outside a running loop."""
    return asyncio.run(new_key(database, team, frozenset(scopes or ("invoke", "read"))))


async def recorded(client: httpx.AsyncClient, task: str, run_id: str) -> dict[str, Any]:
    """The metadata of a run, once it is in the ledger; each look is a request, so the gateway is the clock."""
    async with asyncio.timeout(60):
        while (response := await client.get(f"/tasks/{task}/runs/{run_id}")).status_code != 200:
            pass
    return dict(response.json()["metadata"])
