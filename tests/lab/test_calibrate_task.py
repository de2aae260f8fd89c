"""Calibrating a task whole: which rows serve what, what is written, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.lab import calibrate_task
from gateway.lab.calibrate_task import CalibrateConfig, Settings, calibrate
from gateway.lab.cnn_mix import CnnMixConfig, read_pools
from gateway.lab.mix import MixConfig, moderation_mix
from gateway.lab.rows import LabError, Row
from gateway.lab.systems import load_task
from tests.lab.small_world import World


@pytest.fixture
def config(world: World, tmp_path: Path) -> CalibrateConfig:
    """A copy of the small home, free to be written to."""
    shutil.copytree(world.home, tmp_path / "home")
    return CalibrateConfig(
        home=tmp_path / "home", task="small", sources=world.sources, corpus=world.corpus, base=world.base,
        adapter=world.base / "adapter", readings=world.readings, settings=Settings(recall=0.5),
    )  # fmt: skip


def chosen(config: CalibrateConfig, **settings: Any) -> CalibrateConfig:
    """With other settings."""
    return msgspec.structs.replace(config, settings=msgspec.structs.replace(config.settings, **settings))


def test_rows_that_fit_platt_serve_nothing_else(
    world: World, config: CalibrateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is fitted and judged, trained or watched as well; the file's counts and hashes are those of the rows."""
    seen: dict[str, list[Row]] = {}

    def listening(rows: Any) -> str:
        digest = rows_hash(rows)
        seen[digest] = list(rows)
        return digest

    rows_hash = calibrate_task.rows_hash
    monkeypatch.setattr(calibrate_task, "rows_hash", listening)
    calibrate(config)
    written = json.loads((config.home / "tasks/small/llm-calibration.json").read_text())
    fitted, judged = seen[written["rows_sha256"]], seen[written["thresholds"]["rows_sha256"]]
    assert (len(fitted), len(judged)) == (written["rows"], written["thresholds"]["rows"])
    assert {r.split for r in fitted} == {"platt"}
    assert {r.split for r in judged} == {"calibration", "validation"}
    assert not {r.id for r in fitted} & {r.id for r in judged}
    mix = moderation_mix(world.sources, world.corpus, MixConfig())
    pools = read_pools(world.sources, world.corpus, CnnMixConfig())
    used = [*mix.train, *mix.validation, *pools.watched, *(r for rows in pools.train.values() for r in rows)]
    assert not {r.id for r in fitted} & {r.id for r in used}
    assert {r.id for r in pools.platt} >= {r.id for r in fitted}


def test_what_is_written_is_what_serves(config: CalibrateConfig) -> None:
    """Thresholds in task.toml are those that were found, with how they were chosen; the task loads with them."""
    found = calibrate(chosen(config, hard_negative_fp=0.2))
    chain = load_task(config.home, "small").chain
    assert (chain.accept_above, chain.accept_below) == (found.accept_above, found.accept_above)
    text = (config.home / "tasks/small/task.toml").read_text()
    assert f"accept_below = {found.prefilter_below} # recall" in text
    assert "at most 20.0% of" in text


def test_hard_negatives_bound_what_the_cascade_flags(config: CalibrateConfig) -> None:
    """Of the marketplace's hard negatives no more than the share is flagged, and a laxer bound flags no fewer."""
    strict, lax = (calibrate(chosen(config, hard_negative_fp=share)) for share in (0.1, 0.4))
    assert strict.accept_above >= lax.accept_above
    for found, share in ((strict, 0.1), (lax, 0.4)):
        parts = [systems["cascade"] for systems in found.marketplace.values()]
        flagged = sum(
            p.hard_negatives * p.hard_negatives_flagged.value for p in parts if p.hard_negatives_flagged is not None
        )
        assert flagged <= share * sum(p.hard_negatives for p in parts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hard_negative_fp": 0.1, "accept_above": 0.5}, "not both"),
        ({"recall": 0.9999}, "cannot prove"),
        ({"per_label": 0}, "no rows"),
    ],
)
def test_what_cannot_be_calibrated_leaves_the_task_alone(
    config: CalibrateConfig, change: dict[str, Any], says: str
) -> None:
    """An error that says why, and not a byte of the task's folder is changed."""
    folder = config.home / "tasks/small"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(LabError, match=says):
        calibrate(chosen(config, **change))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
