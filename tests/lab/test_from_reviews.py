"""Thresholds from an export of what people decided."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.lab.files import read_weighted
from gateway.lab.from_reviews import RefitConfig, apply, refit
from gateway.lab.rows import LabError, read_corpus
from gateway.lab.systems import load_task
from tests.lab.small_world import World, rows


def write_labels(path: Path, count: int = 160, *, clean_weight: float = 1.0, texts: tuple[str, ...] = ()) -> Path:
    """As `gateway reviews export` writes them; `texts` are clean ones besides."""
    lines: list[dict[str, Any]] = [
        {"id": row.id, "text": row.text, "label": row.label, "policy": row.policy, "sender_role": row.sender_role,
         "source": "reviews", "weight": 1.0 if row.label == "violation" else clean_weight, "kind": "held"}
        for row in rows(count, 0.5, "reviews", 5)
    ]  # fmt: skip
    lines += [{"id": f"more-{i}", "text": text, "label": "clean"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def config(world: World, tmp_path: Path) -> RefitConfig:
    """A copy of the small home, free to be written to."""
    shutil.copytree(world.home, tmp_path / "home")
    return RefitConfig(
        home=tmp_path / "home", task="small", labels=write_labels(tmp_path / "labels.jsonl"), corpus=world.corpus,
        base=world.base, adapter=world.base / "adapter", readings=world.readings, recall=0.5,
    )  # fmt: skip


def test_nothing_is_written_before_it_is_applied(config: RefitConfig) -> None:
    """The what-if shows both effects; then the task serves what was shown."""
    folder = config.home / "tasks/small"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    shown = refit(config)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert apply(config) == shown
    loaded = load_task(config.home, "small")
    assert loaded.chain.accept_above == shown.then.thresholds.accept_above
    assert loaded.platt().a == pytest.approx(shown.a)
    again = refit(config)
    assert again.now == again.then == shown.then
    assert shown.recall_lower_bound >= 0.5
    assert shown.fitted_rows + shown.measured_rows == 160


def test_weights_are_what_the_stream_is_made_of(config: RefitConfig) -> None:
    """Clean rows that stand for fifty make violations rare, and the effective sample small."""
    even = refit(config)
    skewed = refit(replace(config, labels=write_labels(config.labels.with_name("skewed.jsonl"), clean_weight=50.0)))
    assert even.prevalence == pytest.approx(0.5, abs=0.15)
    assert skewed.prevalence < 0.05
    assert skewed.effective_rows < even.effective_rows
    assert even.effective_rows == pytest.approx(even.measured_rows)
    assert skewed.now.routed is not None
    assert even.now.recall == skewed.now.recall


def test_messages_of_a_frozen_set_are_refused(config: RefitConfig) -> None:
    """However they are spelled: who sends a test message to the service must not tune the thresholds with it."""
    tested = next(row.text for row in read_corpus(config.corpus) if row.split == "test")
    labels = write_labels(config.labels, texts=(f"  {tested.upper()}",))
    with pytest.raises(LabError, match="1 rows are messages of a frozen test set"):
        refit(replace(config, labels=labels))


def test_too_few_violations_prove_nothing(config: RefitConfig) -> None:
    """A recall that so few cannot prove is refused, not approximated."""
    with pytest.raises(LabError, match=r"cannot prove a recall of 0\.999"):
        refit(replace(config, recall=0.999))


@pytest.mark.parametrize("weight", [0.5, "2", None])
def test_weights_are_read_as_numbers(tmp_path: Path, weight: Any) -> None:
    """A file without weights has them all 1."""
    lines = [{"text": "a", "label": "clean", "weight": weight}, {"text": "b", "label": "violation"}]
    (path := tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_weighted(path, "calibration")[1] == [float(weight or 1), 1.0]


@pytest.mark.parametrize("weight", [0, -1, "many", float("inf")])
def test_a_weight_that_is_none_is_refused(tmp_path: Path, weight: Any) -> None:
    """With the row's number."""
    (path := tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "a", "label": "clean", "weight": weight if weight == 0 else str(weight)}) + "\n"
    )
    with pytest.raises(LabError, match="row 1: the weight"):
        read_weighted(path, "calibration")
