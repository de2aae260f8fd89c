"""When an edit of the files comes to be served: counted in looks, which have a known length."""

from pathlib import Path

import pytest
from stack import WORDS, make_home

from gateway.app import load_registry
from gateway.core.errors import Unavailable
from gateway.core.registry import Registry
from gateway.core.reload import LOOK_S, Reloader
from gateway.settings import Settings

SERVED_WITHIN_S = 2.0
"""As documented."""
BUILDING_S = 1.0
"""What is left of it for building: the tasks that ship, with their weights, take a third of that on one core."""


class Follower:
    """A process: what it serves, and whether it could adopt anything else."""

    def __init__(self, home: Path) -> None:
        self.away = False
        self._settings = Settings(home=str(home))
        self.served = load_registry(self._settings)
        self.reloader = Reloader(home, lambda: load_registry(self._settings), self._adopt)

    async def _adopt(self, registry: Registry) -> None:
        if self.away:
            raise Unavailable("the database is away")
        self.served = registry

    @property
    def description(self) -> str:
        """What the task says of itself."""
        return self.served.tasks["manners"].declared.description


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The declaration of the task in a home."""
    monkeypatch.setenv("LLM_URL", "http://127.0.0.1:9")
    return make_home(tmp_path / "home", WORDS / "tokenizer.json") / "tasks/manners/task.toml"


def edit(task: Path, old: str, new: str) -> None:
    text = task.read_text("utf-8")
    assert old in text
    task.write_text(text.replace(old, new), "utf-8")


async def test_an_edit_is_served_after_two_looks(task: Path) -> None:
    """The second finds the files at rest; both fit into the two seconds, with a second for building."""
    follower = Follower(task.parent.parent.parent)
    edit(task, "Is it rude?", "Is it impolite?")
    await follower.reloader.look()
    assert follower.description == "Is it rude?"
    await follower.reloader.look()
    assert follower.description == "Is it impolite?"
    assert 2 * LOOK_S + BUILDING_S <= SERVED_WITHIN_S


async def test_an_edit_that_goes_on_is_read_once_at_its_end(task: Path) -> None:
    """A deployment copies file after file: what stands there in between is never served."""
    follower = Follower(task.parent.parent.parent)
    edit(task, 'model = "tiny"', 'model = "no such model"')
    await follower.reloader.look()
    edit(task, 'model = "no such model"', 'model = "tiny"')
    edit(task, "Is it rude?", "Is it impolite?")
    await follower.reloader.look()
    assert (follower.description, follower.reloader.problems) == ("Is it rude?", ())
    await follower.reloader.look()
    assert (follower.description, follower.reloader.problems) == ("Is it impolite?", ())


async def test_what_could_not_be_adopted_is_tried_again(task: Path) -> None:
    """A database that is away when the files change costs looks, and not the edit."""
    follower = Follower(task.parent.parent.parent)
    follower.away = True
    edit(task, "Is it rude?", "Is it impolite?")
    for _ in range(3):
        await follower.reloader.look()
    assert follower.description == "Is it rude?"
    follower.away = False
    await follower.reloader.look()
    assert follower.description == "Is it impolite?"
