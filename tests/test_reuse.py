"""A reload builds what an edit changed, and nothing else."""

import shutil
from pathlib import Path

import pytest
from stack import ROOT

from gateway.app import Stages
from gateway.core.registry import Registry, load

NAME = "message-moderation"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped moderation task alone, with its prefilter."""
    monkeypatch.setenv("LLM_URL", "http://127.0.0.1:1")
    for folder in ("tasks", "prompts"):
        shutil.copytree(ROOT / folder / NAME, tmp_path / folder / NAME)
    shutil.copy(ROOT / "models.toml", tmp_path)
    return tmp_path


def runners(registry: Registry) -> dict[str, int]:
    """Which object runs each stage."""
    return {step.stage.name: id(step.runner) for step in registry.tasks[NAME].steps}


def edit(path: Path, old: str, new: str) -> None:
    before = path.read_text("utf-8")
    assert old in before
    path.write_text(before.replace(old, new), "utf-8")


def test_a_stage_is_built_again_only_where_it_changed(home: Path) -> None:
    """Quotas and another stage's patience leave rules and prefilter as they are; a threshold, a rule or a byte of the
    prefilter's facts makes that stage anew, and it alone.
    """
    stages, folder = Stages(), home / "tasks" / NAME
    first = load(home, stages)
    edit(folder / "task.toml", "limit = 6000", "limit = 7000")
    edit(folder / "task.toml", "timeout_s = 3", "timeout_s = 2")
    second = load(home, stages)
    assert {name for name, runner in runners(second).items() if runner == runners(first)[name]} == {
        "rules", "prefilter",
    }  # fmt: skip
    edit(folder / "rules.toml", "[[rule]]", "# edited\n[[rule]]")
    third = load(home, stages)
    assert runners(third)["rules"] != runners(second)["rules"]
    assert runners(third)["prefilter"] == runners(first)["prefilter"]
    with (folder / "prefilter.json").open("a", encoding="utf-8") as facts:
        facts.write("\n")
    fourth = load(home, stages)
    assert runners(fourth)["rules"] == runners(third)["rules"]
    assert runners(fourth)["prefilter"] != runners(third)["prefilter"]
