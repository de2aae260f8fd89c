"""The previous system: a plain rules list OR a plain CNN at its own threshold. Frozen before the cascade is measured.

`previous/` in the task's folder holds it as a task of its own with two stages, so that the same adapters and the same
`core.cascade` run it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.core.cascade import Finding, Runner, StageFailed, Step
from gateway.core.config import construct, read_toml
from gateway.core.loaded import StageFiles
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.task import CnnStage, RulesStage, Task
from gateway.lab.rows import Row
from gateway.lab.systems import OfflineBuilder, decide, findings

FOLDER = "previous"
FILE = "system.toml"
_RULE_HIT = 1.0


class Said(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`score` ranks rows: a rule hit stands above every CNN score."""

    score: float
    flagged: bool
    rules: tuple[str, ...] = ()


class Previous(Struct, frozen=True):
    """Two stages; what the CNN cannot read whole counts as not flagged, as it did."""

    task: Task
    steps: tuple[Step, ...]

    @property
    def threshold(self) -> float | None:
        """The CNN score from which on a message is flagged."""
        return next((s.stage.accept_above for s in self.steps if isinstance(s.stage, CnnStage)), None)

    async def judge(self, rows: Sequence[Row]) -> list[Said]:
        """What it says of each row."""
        found = [await findings(step.runner, rows, f"previous {step.stage.name}") for step in self.steps]
        return [await self._said([column[i] for column in found]) for i in range(len(rows))]

    async def _said(self, found: Sequence[Finding | StageFailed]) -> Said:
        outcome = await decide(self.task, [step.stage for step in self.steps], found)
        known = [f for f in found if isinstance(f, Finding)]
        matched = tuple(name for f in known for name in f.matched)
        score = max((f.score for f in known if f.score is not None), default=0.0)
        flagged = outcome.decision.label == self.task.positive
        return Said(score=score + (_RULE_HIT if matched else 0.0), flagged=flagged, rules=matched)


def read_previous(task_folder: Path) -> Previous:
    """The frozen system of a task. Raises InvalidConfig with every problem."""
    folder = task_folder / FOLDER
    place = f"tasks/{task_folder.name}/{FOLDER}/{FILE}"
    problems: list[Problem] = []
    try:
        raw: Mapping[str, Any] | None = read_toml((folder / FILE).read_bytes(), place, problems)
    except OSError as error:
        raise InvalidConfig([Problem(place, "", f"this file cannot be read: {error.strerror}")]) from error
    task = construct(Task, raw, place, "", problems) if raw is not None else None
    if task is None or problems:
        raise InvalidConfig(problems)
    if not all(isinstance(stage, RulesStage | CnnStage) for stage in task.stage):
        raise InvalidConfig([Problem(place, "stage", "the previous system has rules and cnn stages only")])
    return Previous(task, tuple(_step(task, folder, i) for i in range(len(task.stage))))


def _step(task: Task, folder: Path, i: int) -> Step:
    stage = task.stage[i]
    runner: Runner = OfflineBuilder().stage(
        stage, StageFiles(f"{folder.parent.name}/{FOLDER}", task, folder), f"stage[{i}]"
    )
    return Step(stage, runner)
