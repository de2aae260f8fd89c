"""Distillation: what the teacher says becomes the target, and is learnt."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.adapters.prefilter.weights import load_prefilter
from gateway.lab.distill import LlmTeacher
from gateway.lab.readings import read_all, row_key
from gateway.lab.rows import CORPUS, LabError, Row
from gateway.lab.systems import load_task
from gateway.lab.train_cnn import WEIGHTS, CnnConfig, logits, train_cnn
from tests.lab import small_world
from tests.lab.small_world import World


@pytest.fixture
def teacher(world: World) -> LlmTeacher:
    """The random LLM of the small world."""
    asked = load_task(world.home, "small").asked(world.base, world.base / "adapter")
    return LlmTeacher(asked=asked, readings=world.readings, weight=0.25, temperature=2.0)


def test_a_target_is_the_label_and_the_teachers_probability(teacher: LlmTeacher) -> None:
    """A quarter of sigmoid(log-odds / 2), three quarters of the label."""
    rows = small_world.rows(6, 0.5, "convabuse", 5)
    read = read_all(teacher.asked, rows, teacher.readings)
    for row in rows:
        said = 1 / (1 + math.exp(-read[row_key(row)].margin("violation") / 2))
        expected = 0.25 * said + 0.75 * (row.label == "violation")
        assert teacher.targets(rows)[row.id] == pytest.approx(expected)


def test_the_own_corpus_is_read_first(teacher: LlmTeacher) -> None:
    """Where not all rows may be read, those of the corpus are; the choice does not hang on the order given."""
    rows = [*small_world.rows(6, 0.5, "convabuse", 5), *small_world.rows(4, 0.5, CORPUS, 5)]
    few = msgspec.structs.replace(teacher, rows=5)
    chosen = set(few.targets(rows))
    assert len(chosen) == 5
    assert {r.id for r in rows if r.source == CORPUS} < chosen
    assert set(few.targets(rows[::-1])) == chosen


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"temperature": 0.0}])
def test_a_teacher_that_teaches_nothing_is_refused(teacher: LlmTeacher, change: dict[str, float]) -> None:
    """No weight, or no temperature to divide by."""
    with pytest.raises(LabError, match="teaches nothing"):
        msgspec.structs.replace(teacher, **change).targets(small_world.rows(2, 0.5, "convabuse", 5))


class Contrary:
    """Thinks the opposite of every label."""

    def targets(self, rows: Sequence[Row]) -> Mapping[str, float]:
        return {row.id: float(row.label == "clean") for row in rows}

    def facts(self) -> Mapping[str, Any]:
        return {"asked": "contrary"}


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> CnnConfig:
    """A training of seconds."""
    return small_world.cnn_config(world.sources, world.corpus, tmp_path_factory.mktemp("distilled") / "run")


def test_the_network_learns_what_the_teacher_says(config: CnnConfig, teacher: LlmTeacher, tmp_path: Path) -> None:
    """Taught the opposite it ranks the opposite, and calibration refuses that; taught by the LLM the run records it."""
    with pytest.raises(LabError, match="rank clean rows above violations"):
        train_cnn(config, Contrary())
    run = train_cnn(msgspec.structs.replace(config, out=str(tmp_path / "run")), teacher)
    recorded = json.loads((run / "metrics.json").read_text())["teacher"]
    assert recorded["asked"] == teacher.asked.fingerprint()
    assert recorded["rows"] > 100
    prefilter = load_prefilter(run / WEIGHTS)
    bad, good = (logits(prefilter.network, prefilter.reader, [text]) for text in ("are you hiring", "the tap drips"))
    assert bad > good
