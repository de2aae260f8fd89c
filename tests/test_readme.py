"""The examples of README.md, run as they stand there against a running gateway with the tasks of this repository."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stack import MIGRATIONS, ROOT, gateway

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade

README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory, valkey: str, llm_server: str) -> AsyncIterator[Path]:
    """A working directory with `.demo/env`, as the demo writes it, for a gateway that is up."""
    at = tmp_path_factory.mktemp("readme")
    home = at / "home"
    home.mkdir()
    for name in ("tasks", "prompts", "migrations", "models.toml"):
        (home / name).symlink_to(ROOT / name)
    database = f"sqlite:///{at / 'gateway.db'}"
    await upgrade(database, MIGRATIONS)
    key = await new_key(database, "demo", frozenset({"invoke", "read"}))
    with gateway(home, database, valkey, llm_server) as up:
        (at / ".demo").mkdir()
        (at / ".demo/env").write_text(f"export GATEWAY_URL={up.url}\nexport GATEWAY_KEY={key}\n", "utf-8")
        yield at


def run(folder: Path, script: str) -> str:
    """What a shell script prints; it must end well."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
    done = subprocess.run(["sh", "-ec", script], cwd=folder, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_call_works_as_written(folder: Path) -> None:
    """curl with the demo's environment gets an action."""
    (call,) = [block for block in blocks("sh") if "curl" in block]
    assert re.search(r'"action":"(deliver|review)"', run(folder, call))


def test_the_python_examples_work_as_written(folder: Path) -> None:
    """LangServe's client and OpenAI's SDK, one after the other as a reader would type them."""
    (folder / "examples.py").write_text("\n".join(blocks("python")), "utf-8")
    assert "RemoteRunnable" in README
    run(folder, f". .demo/env; {sys.executable} examples.py")
