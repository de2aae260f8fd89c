"""The tasks that answer with text and JSON, as they are shipped, over processes: a gateway and a real model server."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chain_stage import Metered
from fault_server import FaultServer, Seen, saying, serving
from stack import MIGRATIONS, MODELS, ROOT, WORDS, gateway, make_home, recorded
from tokenizers import Tokenizer
from uuid_utils import uuid7

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade
from gateway.app import Stages
from gateway.core.clock import Clock
from gateway.core.examples import NoBook, run_examples
from gateway.core.registry import load

MESSAGE = {"input": {"message": "Can you come on Friday?", "intent": "yes, at nine"}}


def home_with(folder: Path, model: Path, *names: str) -> Path:
    """A home with these shipped tasks, and a random model in the place of the small one."""
    for name in names:
        shutil.copytree(ROOT / "tasks" / name, folder / "tasks" / name)
        shutil.copytree(ROOT / "prompts" / name, folder / "prompts" / name)
    small = MODELS.replace("tiny]", "small-llm]").replace("tiny.price", "small-llm.price")
    return make_home(folder, model / "tokenizer.json", {"models.toml": MODELS + small})


@pytest.fixture
async def client(tmp_path: Path, tiny_llm_folder: Path, valkey: str, llm_server: str) -> AsyncIterator[Any]:
    """A client of a gateway with the two tasks."""
    database = f"sqlite:///{tmp_path / 'gateway.db'}"
    home = home_with(tmp_path / "home", tiny_llm_folder, "job-facts", "polite-reply")
    await upgrade(database, MIGRATIONS)
    key = await new_key(database, "shop", frozenset({"invoke", "read"}))
    with gateway(home, database, valkey, llm_server) as up:
        async with up.client(key) as client:
            yield client


async def test_facts_that_nobody_stated_are_dropped(
    tmp_path: Path, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """job-facts' own chain.py: what is not in the request is null, whatever the model says; the call is metered."""
    facts = '{"service":"gutter cleaning","place":"LEEDS","date":"tomorrow","budget":1200}'
    server = FaultServer(Tokenizer.from_file(str(tiny_llm_folder / "tokenizer.json")))
    server.script.extend([saying(facts)] * 2)
    async with serving(server) as url:
        monkeypatch.setenv("LLM_URL", url)
        stages = Stages()
        (step,) = load(home_with(tmp_path, tiny_llm_folder, "job-facts"), stages).tasks["job-facts"].steps
        stated, silent = Metered(), Metered()
        requests = ("Gutters in Leeds, tomorrow. 1,200 pounds", "Clean my gutters, 80 at most")
        found = [
            (await step.runner.run({"request": r}, m.meter)).output
            for r, m in zip(requests, (stated, silent), strict=True)
        ]
        await stages.aclose()
    assert found[0] == {"service": "gutter cleaning", "place": "LEEDS", "date": "tomorrow", "budget": 1200}
    assert found[1] == {"service": "gutter cleaning", "place": None, "date": None, "budget": None}
    assert stated.outcomes == silent.outcomes == ["ok"]


def knows(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer each example of job-facts as it wants to be answered."""
    lines = (ROOT / "tasks/job-facts/examples.jsonl").read_text("utf-8").splitlines()
    asked = next(example for example in map(json.loads, lines) if example["input"]["request"] in seen.body["inputs"])
    said = {"place": None, "date": None, "budget": None, **asked["output"], "service": " ".join(asked["holds"])}
    saying(json.dumps(said))(server, seen, writer)


async def test_the_examples_of_text_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `gateway check --online` runs: an answer is right if it is valid, has the fields and the fragments that it
    must have, and lacks the others; the task is good from the share that its [gate] names, or where all are right.
    """
    server = FaultServer(Tokenizer.from_file(str(WORDS / "tokenizer.json")))
    clock, stages = Clock(lambda: str(uuid7())), Stages()
    async with serving(server) as url:
        monkeypatch.setenv("LLM_URL", url)
        tasks = load(home_with(tmp_path, WORDS, "job-facts", "polite-reply"), stages).tasks
        server.script.extend([*[saying("Gladly, at nine.")] * 3, saying("Write to me@example.org.")])
        polite = await run_examples(tasks["polite-reply"], clock, NoBook())
        server.usual = knows
        facts = await run_examples(tasks["job-facts"], clock, NoBook())
        server.usual = saying('{"service": "window cleaning", "place": "York", "date": "Friday", "budget": 60}')
        parrot = await run_examples(tasks["job-facts"], clock, NoBook())
        server.usual = saying("no JSON")
        talk = await run_examples(tasks["job-facts"], clock, NoBook())
        await stages.aclose()
    assert (polite.right, [wrong.partition(": ")[2] for wrong in polite.wrong]) == (3, ["holds '@'"])
    assert (facts.right, facts.wrong, facts.good) == (facts.total, (), True)
    assert (parrot.right, parrot.good) == (1, False)
    assert parrot.wrong[0] == "line 2: lacks 'tap'"
    assert (talk.right, talk.wrong[0], talk.good) == (0, "line 1: answer_breaks_schema", False)


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
