"""The prefilter's threshold: chosen on scores, written to the task, and told what it costs."""

import tomllib
from pathlib import Path

import pytest
import torch

from gateway.adapters.prefilter.network import Network, Shape
from gateway.adapters.prefilter.reading import Alphabet, Reader
from gateway.adapters.prefilter.weights import Calibration, save_prefilter
from gateway.lab.prefilter_threshold import Share, describe, passed_on, score_rows, set_threshold
from gateway.lab.rows import LabError, Row

TASK = '[[stage]]\nname = "first"\nkind = "cnn"\nweights = "w.safetensors"\naccept_below = 0.0 # none yet\n'


def row(i: int, text: str, label: str, difficulty: str | None = None) -> Row:
    return Row(id=str(i), source="own", text=text, label=label, split="calibration", difficulty=difficulty)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task with an untrained prefilter."""
    alphabet = Alphabet(max_bytes=60, max_words=20, buckets=64, shortest_group=3, longest_group=4, words="a b")
    torch.manual_seed(2)
    shape = Shape(table_rows=Reader(alphabet).table_rows, word_dim=8, word_filters=8, byte_filters=8, hidden=8)
    calibration = Calibration(a=9.0, b=0.0, fitted_share=0.5, deployed_share=0.5)
    save_prefilter(tmp_path / "w.safetensors", Network(shape), alphabet, calibration, {})
    (tmp_path / "task.toml").write_text(TASK)
    return tmp_path


def test_threshold_is_written_with_its_promise(folder: Path) -> None:
    """At the written threshold the promised share of these very violations is passed on."""
    rows = [row(i, f"word{i * i} and word{i}", "violation") for i in range(200)]
    promise = set_threshold(folder, [*rows, row(999, "a", "clean")], target=0.9)
    text = (folder / "task.toml").read_text()
    written = tomllib.loads(text)["stage"][0]["accept_below"]
    assert 0 < written <= promise.threshold
    assert "(target 0.9)" in text
    share = passed_on(rows, score_rows(folder / "w.safetensors", rows), written)["own/violation"]
    assert share.rows == promise.positives == 200
    assert share.passed >= 200 - promise.missed
    assert promise.missed > 0


def test_texts_that_are_not_read_whole_count_as_passed_on(folder: Path) -> None:
    """They are never cleared, so they are never missed."""
    assert score_rows(folder / "w.safetensors", [row(1, "x" * 61, "violation")]) == [1.0]


def test_shares_are_told_by_source_label_and_difficulty() -> None:
    """The next stage's load comes from clean rows, recall from violations, each with its count."""
    rows = [row(1, "", "clean", "plain"), row(2, "", "clean", "plain"), row(3, "", "violation", "subtle")]
    shares = passed_on(rows, [0.1, 0.3, 0.2], threshold=0.2)
    assert shares == {
        "own/clean": Share(1, 2), "own/clean/plain": Share(1, 2),
        "own/violation": Share(1, 1), "own/violation/subtle": Share(1, 1),
    }  # fmt: skip
    assert describe(shares)["own/clean"] == "0.500 of 2"
    assert describe(shares)["own/violation"] == "1.000 of 1 (at least 0.050)"


def test_a_task_without_a_prefilter_is_refused(folder: Path) -> None:
    """There must be exactly one stage to set."""
    (folder / "task.toml").write_text('[[stage]]\nname = "first"\nkind = "rules"\n')
    with pytest.raises(LabError, match="0 cnn stages"):
        set_threshold(folder, [], target=0.9)


def test_unusable_weights_are_named(folder: Path) -> None:
    """A damaged file is an error that says which."""
    (folder / "w.safetensors").write_bytes(b"")
    with pytest.raises(LabError, match=r"w\.safetensors"):
        score_rows(folder / "w.safetensors", [])
