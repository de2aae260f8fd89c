"""The exported folder says what the adapter says, up to the rounding of bfloat16."""

import shutil
from pathlib import Path

import pytest

from gateway.lab.merge import export_merged, rounding
from gateway.lab.rows import LabError, read_rows
from gateway.lab.systems import load_task
from tests.lab.small_world import World


def test_scores_before_and_after_the_export_are_compared(world: World, tmp_path: Path) -> None:
    """Merged and rounded, the scores differ a little; those of the base without the adapter differ much more."""
    loaded, rows = load_task(world.home, "small"), read_rows(world.data)[:20]
    adapter, merged = world.base / "adapter", tmp_path / "merged"
    gap = export_merged(world.base, adapter, merged)
    found = rounding(loaded, world.base, adapter, merged, rows)
    bare = rounding(loaded, world.base, adapter, world.base, rows)
    assert gap > 0
    assert found.rows == 20
    assert 0 < found.mean <= found.largest < 0.1
    assert bare.mean > 3 * found.mean
    assert found.decisions <= bare.decisions


def test_an_export_of_half_an_adapter_leaves_what_was_there(world: World, tmp_path: Path) -> None:
    """A truncated weights file is refused with its folder's name, and an earlier export stays."""
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    shutil.copytree(world.base / "adapter", adapter)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    merged.mkdir()
    (merged / "earlier").touch()
    with pytest.raises(LabError, match="adapter"):
        export_merged(world.base, adapter, merged)
    assert [path.name for path in merged.iterdir()] == ["earlier"]
