"""The gate: which artifacts `gateway check --promote` lets through."""

import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from gateway.__main__ import cli
from gateway.core.problems import InvalidConfig
from gateway.core.task import Gate
from gateway.lab.gate import gate_problems
from gateway.lab.systems import load_task
from tests.lab.small_world import World


@pytest.fixture
def home(world: World, run: Path, tmp_path: Path) -> Path:
    """A copy of the small home, with the report of its own artifacts."""
    home = tmp_path / "home"
    shutil.copytree(world.home, home)
    (home / "tasks/small/task.toml").open("a").write("\n[gate]\nauc = 0.01\nrecall = 0.01\n")
    shutil.copy(run / "metrics.json", home / "tasks/small")
    return home


def check(home: Path, *words: str) -> Result:
    """`gateway check` with its words."""
    return CliRunner().invoke(cli, ["check", *words], env={"GATEWAY_HOME": str(home)})


def with_bars(home: Path, bars: str) -> None:
    """Other bars in the task's file."""
    path = home / "tasks/small/task.toml"
    path.write_text(path.read_text().split("[gate]")[0] + f"[gate]\n{bars}\n")


def test_cleared_bars_let_artifacts_through(home: Path) -> None:
    """Status 0 and the usual table."""
    found = check(home, "--promote")
    assert found.exit_code == 0, found.output
    assert "small" in found.output


def test_missed_bars_are_refused_by_name_and_only_when_asked(home: Path) -> None:
    """Each missed bar is one problem with its value; plain `check` does not look at reports."""
    with_bars(home, "auc = 0.999\nrecall = 0.9999")
    found = check(home, "--promote")
    assert found.exit_code != 0
    assert isinstance(found.exception, InvalidConfig)
    assert [p.path for p in found.exception.problems] == ["gate.auc", "gate.recall"]
    assert "the bar is 0.999" in found.exception.problems[0].message
    assert check(home).exit_code == 0


def test_a_report_of_other_artifacts_is_refused(home: Path) -> None:
    """A threshold moved after the report was made: the report is of another version."""
    path = home / "tasks/small/task.toml"
    path.write_text(path.read_text().replace("accept_below = 0.05", "accept_below = 0.04"))
    found = check(home, "--promote")
    assert isinstance(found.exception, InvalidConfig)
    assert [p.path for p in found.exception.problems] == ["about.task_fingerprint"]


@pytest.mark.parametrize("report", ["", "{}", "[]", '{"about": 3}', '{"about": {"task_fingerprint": "x"}}'])
def test_a_report_without_numbers_is_refused(home: Path, report: str) -> None:
    """A file that is empty, torn or of another shape lets nothing through, and there is no traceback."""
    (home / "tasks/small/metrics.json").write_text(report)
    assert isinstance(check(home, "--promote").exception, InvalidConfig)


def test_without_bars_of_the_report_none_is_needed(home: Path) -> None:
    """No [gate], or one with the floor of the examples only: there is nothing to refuse."""
    (home / "tasks/small/metrics.json").unlink()
    task = load_task(home, "small").task
    for gate in (None, Gate(accuracy=0.9)):
        declared = msgspec.structs.replace(task.declared, gate=gate)
        assert gate_problems(msgspec.structs.replace(task, declared=declared), home / "tasks/small") == []
    assert gate_problems(task, home / "tasks/small")
