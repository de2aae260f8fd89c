"""The evaluation on a world in small: a real CNN, a random LLM, the serving cascade."""

import asyncio
import json
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from gateway.lab import prompted
from gateway.lab.evaluate import EvalConfig, evaluate
from gateway.lab.predictions import read_predictions
from gateway.lab.rows import LabError, read_rows
from gateway.lab.systems import load_task
from gateway.lab.train_cnn import WEIGHTS, CnnConfig, train_cnn
from gateway.lab.train_previous import freeze_previous
from tests.lab import small_world


class World(NamedTuple):
    home: Path
    sources: Path
    corpus: Path
    data: Path
    readings: Path
    base: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llm_folder: Path) -> World:
    """A home with trained weights, a frozen previous system and a chosen prompt."""
    folder = tmp_path_factory.mktemp("small-world")
    home = small_world.write_home(folder / "home")
    sources = small_world.write_sources(folder / "sources")
    corpus = small_world.write_corpus(folder / "corpus.jsonl.gz")
    task = home / "tasks" / "small"
    config = CnnConfig(
        sources=str(sources), corpus=str(corpus), out=str(folder / "cnn"), epochs=3, lexicon=200, buckets=64,
        shape={"word_dim": 8, "word_filters": 8, "byte_dim": 4, "byte_filters": 4, "hidden": 8},
    )  # fmt: skip
    run = train_cnn(config)
    for suffix in (".safetensors", ".json"):
        (task / "prefilter").with_suffix(suffix).write_bytes((run / WEIGHTS).with_suffix(suffix).read_bytes())
    freeze_previous(msgspec.structs.replace(config, out=str(folder / "old")), task / "previous")
    loaded = load_task(home, "small")
    rows = prompted.validation_rows(sources, corpus, per_label=3)
    letters = dict.fromkeys(("prompted.v1", "prompted.v2"), {"clean": "A", "violation": "B"})
    choice = prompted.choose(loaded, tiny_llm_folder, rows, folder / "readings", candidates=letters)
    prompted.write(choice, task)
    data = small_world.write_frozen(folder / "eval-small.jsonl.gz")
    return World(home, sources, corpus, data, folder / "readings", tiny_llm_folder)


def config_of(world: World, out: Path) -> EvalConfig:
    return EvalConfig(
        home=world.home, task="small", data=world.data, out=out, base=world.base, readings=world.readings,
        adapter=world.base / "adapter",
    )  # fmt: skip


def test_all_four_systems_are_measured_on_the_same_rows(world: World, tmp_path: Path) -> None:
    """The folder is whole: every row's predictions, four systems' metrics, a report with plots; no message text."""
    found = evaluate(config_of(world, tmp_path / "run"))
    assert list(found.systems) == ["previous", "prompted", "tuned", "cascade"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json", "predictions.jsonl", "metrics.json", "report.md", "roc.png", "precision_recall.png",
        "reliability.png", "routing.png",
    }  # fmt: skip
    rows = {row.id: row for row in read_rows(world.data)}
    predictions = read_predictions(tmp_path / "run" / "predictions.jsonl")
    assert [p.id for p in predictions] == list(rows)
    written = (tmp_path / "run" / "predictions.jsonl").read_text() + (tmp_path / "run" / "report.md").read_text()
    assert not any(row.text in written for row in rows.values())
    # The CNN has learnt what the world says; the LLM is random.
    assert found.systems["previous"].auc.value > 0.9
    assert found.systems["tuned"].auc.value < 0.9


def test_every_row_has_the_score_of_every_stage(world: World, tmp_path: Path) -> None:
    """Also the rows that a cheap stage decided are scored by the LLM; the cascade calls it only for the open ones."""
    evaluate(config_of(world, tmp_path / "run"))
    predictions = read_predictions(tmp_path / "run" / "predictions.jsonl")
    assert all(0 < p.llm < 1 and p.cnn is not None and p.prompted is not None for p in predictions)
    stages = {p.cascade.stage for p in predictions}
    assert stages == {"rules", "prefilter", "llm"}
    assert all(p.cascade.llm_called == (p.cascade.stage == "llm") for p in predictions)
    assert all("gift-card" in p.rules for p in predictions if p.cascade.stage == "rules")


def test_the_same_run_twice_gives_the_same_files(world: World, tmp_path: Path) -> None:
    """Predictions and metrics are equal to the byte; the second run reads nothing with the LLM."""
    evaluate(config_of(world, tmp_path / "a"))
    kept = {p.name: p.stat().st_mtime_ns for p in world.readings.iterdir()}
    evaluate(config_of(world, tmp_path / "b"))
    for name in ("predictions.jsonl", "metrics.json", "report.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert kept == {p.name: p.stat().st_mtime_ns for p in world.readings.iterdir()}


def test_a_torn_reading_is_read_again(world: World, tmp_path: Path) -> None:
    """Half a line at the end of the kept readings is what a stop leaves; the run goes on from there."""
    copied = tmp_path / "readings"
    copied.mkdir()
    for path in world.readings.iterdir():
        (copied / path.name).write_bytes(path.read_bytes()[:-20])
    before = evaluate(config_of(world, tmp_path / "a"))
    after = evaluate(msgspec.structs.replace(config_of(world, tmp_path / "b"), readings=copied))
    assert after.systems["tuned"].auc.value == pytest.approx(before.systems["tuned"].auc.value, abs=1e-3)


def test_the_lab_scores_as_the_door_does(world: World, tmp_path: Path, llm_server: str) -> None:
    """The batched reading and the serving door, over HTTP to the local LLM server, give the same score to 1e-3."""
    home = small_world.write_home(tmp_path / "home")
    text = (home / "models.toml").read_text().replace("http://127.0.0.1:9", llm_server)
    (home / "models.toml").write_text(
        text.replace('model_id = "tiny"', 'model_id = "tiny"\nadapter = "tiny"\nmax_top_n_tokens = 10')
    )
    for name in ("prefilter.safetensors", "prefilter.json"):
        (home / "tasks/small" / name).write_bytes((world.home / "tasks/small" / name).read_bytes())
    rows = read_rows(world.data)[:12]
    served, said = asyncio.run(_served_and_read(home, rows, world))
    assert served == pytest.approx(said, abs=1e-3)
    assert len(set(served)) > 6


async def _served_and_read(home: Path, rows: list[small_world.Row], world: World) -> tuple[list[float], list[float]]:
    from gateway.app import Stages
    from gateway.core.registry import load
    from gateway.lab.readings import read_all
    from gateway.lab.systems import findings, recorded_chain

    stages = Stages()
    try:
        door = load(home, stages).task("small").steps[2].runner
        loaded = load_task(home, "small")
        asked = msgspec.structs.replace(loaded.asked(world.base, world.base / "adapter"), base_name="door")
        readings = read_all(asked, rows, world.readings)
        served = await findings(door, rows, "door")
        read = await findings(recorded_chain(loaded, readings), rows, "lab")
    finally:
        await stages.aclose()
    return [f.score for f in served], [f.score for f in read]  # type: ignore[union-attr,misc]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("no-columns.csv", "message,verdict\nhello,clean\n", "no text and no label"),
        ("empty.csv", "text,label\n", "no rows"),
        ("one-class.csv", "text,label\nhello,clean\nthere,clean\n", "both `clean` and `violation`"),
        ("half.jsonl.gz", "not gzip", "half.jsonl.gz"),
    ],
)
def test_bad_data_says_why_and_harms_nothing(world: World, tmp_path: Path, name: str, text: str, says: str) -> None:
    """Without columns, rows, both classes or a whole file there is no evaluation; an earlier one stays."""
    (tmp_path / name).write_text(text)
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.json").write_text("earlier")
    with pytest.raises(LabError, match=says):
        evaluate(msgspec.structs.replace(config_of(world, out), data=tmp_path / name))
    assert (out / "metrics.json").read_text() == "earlier"


def test_a_broken_adapter_is_named(world: World, tmp_path: Path) -> None:
    """A truncated adapter is an error with its folder's name."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (world.base / "adapter").iterdir():
        (adapter / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LabError, match="adapter"):
        evaluate(msgspec.structs.replace(config_of(world, tmp_path / "run"), adapter=adapter))
    assert not (tmp_path / "run").exists()


def test_metrics_are_json_with_intervals(world: World, tmp_path: Path) -> None:
    """Every AUC in metrics.json stands between the ends of its interval."""
    evaluate(config_of(world, tmp_path / "run"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for system in metrics["systems"].values():
        assert system["auc"]["low"] <= system["auc"]["value"] <= system["auc"]["high"]
        assert {"source/convabuse", "origin/real", "policy/abuse", "difficulty/subtle"} <= system["parts"].keys()
