"""The evaluation on a world in small: a real CNN, a random LLM, the serving cascade."""

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from gateway.app import Stages
from gateway.core.cascade import Finding, StageFailed
from gateway.core.clock import Clock
from gateway.core.inference import Intent
from gateway.core.meter import Meter, Settlement
from gateway.core.quotas import Charge
from gateway.core.registry import load
from gateway.lab.evaluate import evaluate
from gateway.lab.predictions import read_predictions
from gateway.lab.readings import read_all
from gateway.lab.rows import LabError, Row, read_rows
from gateway.lab.simulate import simulate
from gateway.lab.systems import findings, item_of, load_task, offline_meter, recorded_chain
from gateway.local import llm
from gateway.local.child import free_port
from tests.lab import small_world
from tests.lab.small_world import World


def test_all_four_systems_are_measured_on_the_same_rows(world: World, run: Path) -> None:
    """The folder is whole: every row's predictions, four systems' metrics, a report with plots; no message text."""
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "predictions.jsonl", "metrics.json", "report.md", "roc.png", "precision_recall.png",
        "reliability.png", "routing.png",
    }  # fmt: skip
    rows = {row.id: row for row in read_rows(world.data)}
    assert [p.id for p in read_predictions(run / "predictions.jsonl")] == list(rows)
    written = (run / "predictions.jsonl").read_text() + (run / "report.md").read_text()
    assert not any(row.text in written for row in rows.values())


def test_metrics_are_json_with_intervals(run: Path) -> None:
    """Every AUC stands between the ends of its interval; the CNN has learnt this world, the random LLM has not."""
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["systems"]) == {"previous", "prompted", "tuned", "cascade"}
    for system in metrics["systems"].values():
        assert system["auc"]["low"] <= system["auc"]["value"] <= system["auc"]["high"]
        assert {"source/convabuse", "origin/real", "policy/abuse", "difficulty/subtle"} <= system["parts"].keys()
    assert metrics["systems"]["previous"]["auc"]["value"] > 0.9
    assert metrics["systems"]["tuned"]["auc"]["value"] < 0.9


def test_every_row_has_the_score_of_every_stage(run: Path) -> None:
    """Also the rows that a cheap stage decided are scored by the LLM; the cascade calls it only for the open ones."""
    predictions = read_predictions(run / "predictions.jsonl")
    assert all(0 < p.llm < 1 and p.cnn is not None and p.prompted is not None for p in predictions)
    assert {p.cascade.stage for p in predictions} == {"rules", "prefilter", "llm"}
    assert all(p.cascade.llm_called == (p.cascade.stage == "llm") for p in predictions)
    assert all("gift-card" in p.rules for p in predictions if p.cascade.stage == "rules")


def test_what_is_routed_is_told_of_each_source(run: Path) -> None:
    """Shares routed by source and label, and of all service talk, are those of the rows; the report shows them."""
    predictions = read_predictions(run / "predictions.jsonl")
    routed = json.loads((run / "metrics.json").read_text())["cascade"]["routed_of"]
    assert set(routed) == {f"{p.source}/{p.label}" for p in predictions} | {"service talk"}
    talk = [p.cascade.llm_called for p in predictions if p.source == "multidogo"]
    assert routed["service talk"]["value"] == pytest.approx(sum(talk) / len(talk))
    assert routed["service talk"] == routed["multidogo/clean"]
    assert "routed, of convabuse/violation" in (run / "report.md").read_text()


def test_a_laxer_prefilter_routes_more(world: World, run: Path) -> None:
    """A simulation at a higher recall routes at least as much, keeps what it promises, and changes no file."""
    before = (world.home / "tasks/small/task.toml").read_bytes()
    low, high = (simulate(world.home, "small", run, recall) for recall in (0.5, 0.9))
    assert low.threshold <= 1
    assert high.threshold <= low.threshold
    assert high.cascade.routed.value >= low.cascade.routed.value
    assert high.recall_lower_bound >= 0.9
    assert (world.home / "tasks/small/task.toml").read_bytes() == before


def test_a_torn_reading_is_read_again_and_gives_the_same_files(world: World, run: Path, tmp_path: Path) -> None:
    """Half a line is what a stop leaves; the run goes on from there to the same predictions, metrics and report."""
    copied = tmp_path / "readings"
    copied.mkdir()
    for path in world.readings.iterdir():
        (copied / path.name).write_bytes(path.read_bytes()[:-20])
    evaluate(msgspec.structs.replace(world.evaluation(tmp_path / "again"), readings=copied))
    again, before = (read_predictions(f / "predictions.jsonl") for f in (tmp_path / "again", run))
    assert [p.id for p in again] == [p.id for p in before]
    assert [p.llm_margin for p in again] == pytest.approx([p.llm_margin for p in before], abs=0.05)
    # Other tests read more rows into the world's folder, so lines are not counted: no file that was used stays torn.
    torn = {path.name: path.read_bytes()[:-20] for path in world.readings.iterdir()}
    used = [path for path in copied.iterdir() if path.read_bytes() != torn[path.name]]
    assert used
    assert all(msgspec.json.decode(line) for path in used for line in path.read_bytes().splitlines())


@pytest.fixture(scope="module")
def talkative_server(tiny_llm_folder: Path) -> Iterator[str]:
    """The real local LLM server, with room for the whole small vocabulary in its lists of likely tokens."""
    app = llm.load(tiny_llm_folder, {"tiny": tiny_llm_folder / "adapter"}, llm.Options(threads=1, max_top_n_tokens=300))
    with llm.running(app, "127.0.0.1", free_port()) as url:
        yield url


def test_the_lab_scores_as_the_door_does(world: World, tmp_path: Path, talkative_server: str) -> None:
    """The batched reading and the serving door, over HTTP to the local LLM server, give the same score."""
    home = small_world.write_home(tmp_path / "home")
    text = (home / "models.toml").read_text().replace("http://127.0.0.1:9", talkative_server)
    (home / "models.toml").write_text(
        text.replace('model_id = "tiny"', 'model_id = "tiny"\nadapter = "tiny"\nmax_top_n_tokens = 250')
    )
    for name in ("prefilter.safetensors", "prefilter.json"):
        (home / "tasks/small" / name).write_bytes((world.home / "tasks/small" / name).read_bytes())
    rows = read_rows(world.data)[:12]
    served, said = asyncio.run(_served_and_read(home, rows, world))
    assert served == pytest.approx(said, abs=0.02)
    assert len(set(served)) > 6


async def _served_and_read(home: Path, rows: list[Row], world: World) -> tuple[list[float], list[float]]:
    stages = Stages()
    meter = Meter(offline_meter().invocation, (), _NoBudget(), _NoBudget(), Clock(new_id=lambda: "id"), ZoneInfo("UTC"))
    try:
        door = load(home, stages).task("small").steps[2].runner
        served = [await door.run(item_of(row), meter) for row in rows]
    finally:
        await stages.aclose()
    loaded = load_task(home, "small")
    readings = read_all(loaded.asked(world.base, world.base / "adapter"), rows, home / "readings")
    read = await findings(recorded_chain(loaded, readings), rows, "lab")
    return [_score(f) for f in served], [_score(f) for f in read]


class _NoBudget:
    """Stores for calls that nobody limits."""

    async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
        raise AssertionError("there is no quota")

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        raise AssertionError("there is no quota")

    async def intend(self, intent: Intent) -> None:
        pass


def _score(found: Finding | StageFailed) -> float:
    assert isinstance(found, Finding), f"the stage failed: {found}"
    assert found.score is not None
    return found.score


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("no-columns.csv", "message,verdict\nhello,clean\n", "lacks text and label"),
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
        evaluate(msgspec.structs.replace(world.evaluation(out), data=tmp_path / name))
    assert (out / "metrics.json").read_text() == "earlier"


def test_an_adapter_of_another_rank_is_named_on_one_line(world: World, tmp_path: Path) -> None:
    """Of all the weights that do not fit, the first is told; status 2 needs one line."""
    adapter = tmp_path / "adapter"
    shutil.copytree(world.base / "adapter", adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "r": 2 * settings["r"]}))
    with pytest.raises(LabError, match=r"size mismatch.*and \d+ more") as refused:
        evaluate(msgspec.structs.replace(world.evaluation(tmp_path / "run"), adapter=adapter, readings=tmp_path / "r"))
    assert "\n" not in str(refused.value)


def test_scores_that_are_no_numbers_are_not_kept(world: World, tmp_path: Path) -> None:
    """An adapter with a NaN among its weights is named, twice in the same words: no reading of it was kept."""
    adapter = tmp_path / "adapter"
    shutil.copytree(world.base / "adapter", adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()},
              adapter / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    config = msgspec.structs.replace(world.evaluation(tmp_path / "run"), adapter=adapter, readings=tmp_path / "r")
    for _ in range(2):
        with pytest.raises(LabError, match=r"adapter: its answers are not finite numbers"):
            evaluate(config)
    assert not list((tmp_path / "r").iterdir())


def test_a_broken_adapter_is_named(world: World, tmp_path: Path) -> None:
    """A truncated adapter is an error with its folder's name."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (world.base / "adapter").iterdir():
        (adapter / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LabError, match="adapter"):
        evaluate(msgspec.structs.replace(world.evaluation(tmp_path / "run"), adapter=adapter))
    assert not (tmp_path / "run").exists()
