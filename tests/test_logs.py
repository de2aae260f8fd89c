"""What a gateway writes to its log while everything goes wrong: where and what, never the message or the key."""

import json
from pathlib import Path
from typing import Any

from fault_server import FaultServer, rubbish, serving, status
from stack import FILES, MANNERS, MIGRATIONS, ROOT, gateway, make_home
from tokenizers import Tokenizer

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade

TOKENIZER = ROOT / "tasks/message-moderation/adapter/tokenizer.json"
SECRET = "zanzibar plumber"
# A team's own code whose error quotes what it was given, as errors of libraries do.
OWN_CHAIN = """
from langchain_core.runnables import RunnableLambda


def quote(item):
    raise ValueError(f"cannot read {item!r}")


def build(stage, model):
    return RunnableLambda(quote)
"""
BROKEN = MANNERS.replace("manners/ask.v1", "broken/ask.v1")


async def test_no_log_line_has_the_text_of_a_message_or_a_key(tmp_path: Path, valkey: str) -> None:
    """Models that fail, own code that quotes, bad input, a wrong key: JSON lines with ids, and no words."""
    home = make_home(tmp_path / "home", TOKENIZER, broken_task())
    database = f"sqlite:///{tmp_path / 'gateway.db'}"
    await upgrade(database, MIGRATIONS)
    key = await new_key(database, "shop", frozenset({"invoke"}))
    llm = FaultServer(Tokenizer.from_file(str(TOKENIZER)))
    async with serving(llm) as llm_url:
        with gateway(home, database, valkey, llm_url) as up:
            async with up.client(key) as client:

                async def ask(task: str, body: Any, **headers: str) -> dict[str, Any]:
                    return dict((await client.post(f"/tasks/{task}/invoke", json=body, headers=headers)).json())

                for number, fault in enumerate((rubbish(f'"{SECRET}"'.encode()), status(503))):
                    llm.usual = fault
                    held = await ask("manners", {"input": {"message": f"{SECRET} {number}"}})
                    assert held["metadata"]["status"] == "deferred"
                broken = await ask("broken", {"input": {"message": f"{SECRET} again"}})
                assert broken["metadata"]["reason"] == "stage_error"
                assert (await ask("manners", {"input": {"massage": SECRET}}))["code"] == "invalid_input"
                wrong = {"authorization": f"Bearer gk_{key[3:19]}_{'zanzibar' * 5}xxx"}
                assert (await ask("manners", {}, **wrong))["code"] == "unauthenticated"
            check(up.child.log.read_text("utf-8"), key, broken["metadata"])


def broken_task() -> dict[str, str]:
    """The files of a task whose own chain always raises."""
    files = {name: "tasks/manners/" + name for name in ("input.json", "output.json", "rules.toml")}
    task = {f"tasks/broken/{name}": FILES[path] for name, path in files.items()}
    return {
        **task,
        "tasks/broken/task.toml": BROKEN,
        "tasks/broken/chain.py": OWN_CHAIN,
        "prompts/broken/ask.v1.md": FILES["prompts/manners/ask.v1.md"],
    }


def check(log: str, key: str, metadata: dict[str, Any]) -> None:
    """Every line is JSON; the failures are there, with their ids; the words are not."""
    for word in (*SECRET.split(), key, key.split("_")[2], "massage"):
        assert word not in log
    lines = [json.loads(line) for line in log.splitlines()]
    failed = [line for line in lines if line["event"] == "stage_failed"]
    assert {line["reason"].split(":")[0] for line in failed} >= {"model_error", "model_answer_invalid"}
    assert all(line["trace_id"] and line["run_id"] and line["request_id"] for line in failed)
    (broke,) = (line for line in lines if line["event"] == "stage_broken")
    assert (broke["run_id"], broke["trace_id"]) == (metadata["run_id"], metadata["trace_id"])
    assert broke["exception"][0]["type"] == "ValueError"
    assert any(frame.endswith(" quote") for frame in broke["exception"][0]["frames"])
