"""Reproducing committed results: the whole path in a small home, and what counts as a difference."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from gateway.__main__ import cli, main
from gateway.lab.agreement import compare
from tests.lab.small_world import World

CASE = {
    "id": "a", "function": "f", "group": "functional", "sender_role": "pro", "message": "are you hiring",
    "label": "violation", "policy": "job_seeking",
}  # fmt: skip


class Lab:
    """`gateway lab` in a home of its own, on the small world's sources."""

    def __init__(self, world: World, folder: Path) -> None:
        self.home = folder / "home"
        self.task = self.home / "tasks" / "small"
        shutil.copytree(world.home, self.home)
        tuned = ("--base", world.base, "--adapter", world.base / "adapter", "--readings", folder / "readings")
        self._with = ("--task", "small", *tuned, "--sources", world.sources, "--corpus", world.corpus)
        self._out = ("--out", folder / "run", "--set", "eval-1000", "--set", "unseen")

    def run(self, command: str, *words: object) -> Result:
        """The command's result."""
        asked = [str(word) for word in ("lab", command, *self._with, *words)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["gateway", *asked])
            program = click.Command("gateway", callback=main)
            return CliRunner().invoke(program, [], env={"GATEWAY_HOME": str(self.home)})

    def reproduce(self, *words: object) -> Result:
        """`reproduce` of one set that the small corpus fills and of one that it does not."""
        return self.run("reproduce", *self._out, *words)


@pytest.fixture(scope="module")
def lab(world: World, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Calibrated, with its results committed."""
    made = Lab(world, tmp_path_factory.mktemp("reproduce"))
    (made.home / "case.jsonl").write_text(json.dumps(CASE))
    packed = ["lab", "pack-suite", str(made.home / "case.jsonl"), "--out", str(made.task / "suite.jsonl.gz")]
    assert CliRunner().invoke(cli, packed).exit_code == 0
    assert made.run("calibrate", "--recall", 0.5).exit_code == 0
    written = made.reproduce("--write")
    assert written.exit_code == 0, written.output
    assert "eval-1000: fine-tuned AUC" in written.output
    return made


def test_what_is_made_again_agrees_with_what_is_committed(lab: Lab) -> None:
    """Sets, calibration, evaluation and suite: status 0, the tolerance stated, and what cannot be had is named."""
    assert {p.stem for p in (lab.task / "results").iterdir()} == {"manifest", "calibration", "eval-1000", "attack"}
    found = lab.reproduce()
    assert found.exit_code == 0, found.output
    assert "0 differ. hashes must be equal; estimates may differ by 0.01" in found.output
    assert "skipped: unseen: no result of it is committed" in found.output
    assert "skipped: davidson2017: this source is absent" in found.output


PLANTED: tuple[tuple[str, tuple[str, ...], float | str], ...] = (
    ("eval-1000", ("systems", "tuned", "auc", "value"), 0.01),
    ("eval-1000", ("about", "data_sha256"), "0" * 64),
    ("attack", ("functional_pass_rate", "value"), 77.0),
    ("calibration", ("a",), 77.0),
    ("manifest", ("sets", "eval-1000", "sha256"), "0"),
)


def test_planted_differences_are_reported(lab: Lab) -> None:
    """Numbers and hashes that are not what comes out: status 1, each with its place, and nothing else differs."""
    shutil.copytree(lab.task / "results", lab.home / "kept")
    for result, path, planted in PLANTED:
        file = lab.task / "results" / f"{result}.json"
        changed = place = json.loads(file.read_text())
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = planted
        file.write_text(json.dumps(changed))
    try:
        found = lab.reproduce()
    finally:
        shutil.rmtree(lab.task / "results")
        (lab.home / "kept").rename(lab.task / "results")
    assert found.exit_code == 1
    for result, path, _ in PLANTED:
        assert f"{result}: {'.'.join(path)} is " in found.output
    assert f" {len(PLANTED)} differ." in found.output


def test_without_the_prompted_model_the_rest_is_still_compared(lab: Lab) -> None:
    """Its choice of a prompt is gone: an error that says so, unless it is left out as asked, which is said as well."""
    choice = lab.task / "prompted.json"
    kept = choice.read_bytes()
    choice.unlink()
    try:
        refused, found = lab.reproduce(), lab.reproduce("--without", "prompted")
    finally:
        choice.write_bytes(kept)
    assert (refused.exit_code, found.exit_code) == (2, 0), found.output
    assert "prompted.json" in refused.output
    assert "skipped: prompted: left out, as asked" in found.output


def test_nothing_committed_is_nothing_to_compare(lab: Lab, tmp_path: Path) -> None:
    """Status 2 and how to get results; a set that does not exist is refused with the known ones."""
    (lab.task / "results").rename(tmp_path / "results")
    try:
        found = lab.reproduce()
    finally:
        (tmp_path / "results").rename(lab.task / "results")
    assert found.exit_code == 2
    assert "--write" in found.output
    unknown = lab.reproduce("--set", "eval-7")
    assert (unknown.exit_code, "known: eval-1000" in unknown.output) == (2, True)


INTERVAL = {"value": 0.8, "low": 0.6, "high": 0.9}


@pytest.mark.parametrize(
    ("committed", "now", "differs"),
    [
        ({"value": 0.5}, {"value": 0.509}, False),
        ({"value": 0.5}, {"value": 0.52}, True),
        (INTERVAL, {**INTERVAL, "value": 0.87}, False),
        (INTERVAL, {**INTERVAL, "value": 0.88}, True),
        (INTERVAL, None, True),
        ({"value": 0.5}, {"value": math.nan}, True),
        ({"value": 0.5}, {"value": None}, True),
        ({"a": 2.0}, {"a": 2.09}, False),
        ({"accept_above": 0.012}, {"accept_above": 0.013}, True),
        ({"sha256": "x"}, {"sha256": "y"}, True),
        ({"rows": 5, "curves": {"value": 1.0}}, {}, False),
        ({}, {"value": 1.0}, False),
    ],
)
def test_what_counts_as_a_difference(committed: Any, now: Any, differs: bool) -> None:
    """0.01, or a quarter of the interval; 5 % of what was fitted; hashes to the letter; NaN and absence never agree."""
    assert bool(compare("r", committed, now).differences) == differs
