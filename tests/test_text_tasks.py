"""The tasks that answer with text and JSON, as they are shipped, over processes: a gateway and a real model server."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import MIGRATIONS, MODELS, ROOT, gateway, make_home, recorded

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade

MESSAGE = {"input": {"message": "Can you come on Friday?", "intent": "yes, at nine"}}


@pytest.fixture
async def client(tmp_path: Path, tiny_llm_folder: Path, valkey: str, llm_server: str) -> AsyncIterator[Any]:
    """A client of a gateway with the two tasks, and a random model in the place of the small one."""
    home, database = tmp_path / "home", f"sqlite:///{tmp_path / 'gateway.db'}"
    for name in ("job-facts", "polite-reply"):
        shutil.copytree(ROOT / "tasks" / name, home / "tasks" / name)
        shutil.copytree(ROOT / "prompts" / name, home / "prompts" / name)
    small = MODELS.replace("tiny]", "small-llm]").replace("tiny.price", "small-llm.price")
    make_home(home, tiny_llm_folder / "tokenizer.json", {"models.toml": MODELS + small})
    await upgrade(database, MIGRATIONS)
    key = await new_key(database, "shop", frozenset({"invoke", "read"}))
    with gateway(home, database, valkey, llm_server) as up:
        async with up.client(key) as client:
            yield client


async def test_the_tasks_with_text_and_json(client: httpx.AsyncClient) -> None:
    """A reply is streamed and settled as counted, also for who leaves in the middle; JSON is asked for twice."""
    events: list[tuple[str, Any]] = []
    async with client.stream("POST", "/tasks/polite-reply/stream", json=MESSAGE) as response:
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and len(line) > 6:
                events.append((name, json.loads(line.removeprefix("data: "))))
    (first, begun), *pieces, (last, whole) = events
    assert (first, last, {name for name, _ in pieces}) == ("metadata", "metadata", {"data"})
    assert len(pieces) > 10
    assert whole["usage"]["output_tokens"] == 120
    assert (await recorded(client, "polite-reply", begun["run_id"]))["usage"] == whole["usage"]

    async with client.stream("POST", "/tasks/polite-reply/stream", json=MESSAGE) as response:
        lines = response.aiter_lines()
        while not (line := await anext(lines)).startswith("data: "):
            pass
        left = json.loads(line.removeprefix("data: "))["run_id"]
    assert (await recorded(client, "polite-reply", left))["usage"] == whole["usage"]

    response = await client.post("/tasks/job-facts/invoke", json={"input": {"request": "Clean my gutters."}})
    assert (response.status_code, response.json()["reason"]) == (502, "answer_breaks_schema")
    (attempt,) = (await recorded(client, "job-facts", response.json()["run_id"]))["attempts"]
    assert attempt["usage"]["output_tokens"] == 240
