"""The commands of an operator's terminal, each on a real database."""

import asyncio
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from stack import MIGRATIONS, make_home

from gateway.__main__ import cli
from gateway.adapters.sql.access import opened
from gateway.adapters.sql.fingerprints import SqlFingerprints
from gateway.adapters.sql.migrate import upgrade
from gateway.app import load_registry
from gateway.core.clock import Clock
from gateway.settings import Settings

KEY = re.compile(r"gk_([a-z0-9]{16})_[A-Za-z0-9_-]{43}")


@pytest.fixture
async def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    await upgrade(url, MIGRATIONS)
    monkeypatch.setenv("GATEWAY_DATABASE_URL", url)
    return url


@pytest.fixture
def home(tmp_path: Path, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_home(tmp_path / "home", tiny_llm_folder / "tokenizer.json")
    monkeypatch.setenv("GATEWAY_HOME", str(folder))
    monkeypatch.setenv("LLM_URL", "http://127.0.0.1:1")
    return folder


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


async def remember(home: Path, url: str) -> str:
    """As a gateway does that serves these files."""
    task = load_registry(Settings(home=str(home))).task("manners")
    async with opened(url) as database:
        await SqlFingerprints(database).remember(task.fingerprint, "manners", task.config, Clock(str).now())
    return task.fingerprint


def test_a_key_from_its_making_to_its_end(database: str) -> None:
    """Create, rotate with overlap, revoke: the secret is printed once, and the audit log has every act."""
    made = KEY.fullmatch(run("keys", "create", "--team", "shop", "--scope", "invoke").output.strip())
    assert made
    rotated = KEY.fullmatch(run("keys", "rotate", made[1], "--overlap-hours", "2").output.strip())
    assert rotated
    assert rotated[0] != made[0]
    assert run("keys", "revoke", rotated[1]).exit_code == 0
    refused = run("keys", "rotate", rotated[1])
    assert (refused.exit_code, f"There is no key `{rotated[1]}` in use." in refused.output) == (1, True)
    listed, acts = run("keys", "list").output, run("audit", "list").output
    for match in (made, rotated):
        assert match[0] not in listed + acts
        assert match[1] in acts
    assert re.findall(r"  (\w+_\w+)  ", acts) == ["key_revoked", "key_rotated", "key_created", "team_created"]


def test_a_team_that_no_task_could_name_is_refused(database: str) -> None:
    """Names are those of task.toml and of the HTTP interface, at the terminal too; nothing is made."""
    for words in (("keys", "create", "--team", "Shop & Co"), ("teams", "create", "9lives")):
        refused = run(*words)
        assert refused.exit_code == 2
        assert "a team is named in lower case letters" in " ".join(refused.output.split())
    assert run("teams", "list").output.split() == ["platform"]


async def test_history_and_diff_name_what_changed(database: str, home: Path) -> None:
    """The diff of two versions, and of a version and the tree, shows changed lines and nothing else."""
    first = await remember(home, database)
    rules = home / "tasks/manners/rules.toml"
    rules.write_text(rules.read_text("utf-8").replace("thank you", "thanks"), "utf-8")
    second = await remember(home, database)
    prompt = home / "prompts/manners/ask.v1.md"
    prompt.write_text(prompt.read_text("utf-8").replace("rude?", "impolite?"), "utf-8")

    lines = await run_async("task", "history", "manners")
    assert [line.split()[0] for line in lines] == [second, first]
    between = await run_async("task", "diff", "manners", first, second)
    assert changed(between) == [r"patterns = ['\\bthank you\\b']", r"patterns = ['\\bthanks\\b']"]
    tree = await run_async("task", "diff", "manners", second)
    assert changed(tree) == ["Is it rude?", "Is it impolite?"]
    unknown = await run_async("task", "diff", "manners", "0" * 16)
    assert "was never served" in unknown[-1]


async def run_async(*words: str) -> list[str]:
    """Commands have a loop of their own, so they run in a thread."""
    return (await asyncio.to_thread(run, *words)).output.splitlines()


def changed(diff: list[str]) -> list[str]:
    """The texts of the lines that a diff takes away and adds; hashes and sizes aside."""
    lines = [line[1:].strip() for line in diff if re.match(r"[+-](?![+-]{2})", line)]
    return [line.rstrip(",").split(": ")[-1].strip('"') for line in lines if not re.match(r'"(sha256|bytes)"', line)]
