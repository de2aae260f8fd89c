"""The frozen test sets."""

import errno
from pathlib import Path

import pytest

from gateway.lab.frozen import CORPUS, OWN_SOURCES, RECIPES, Recipe, build_frozen, describe, draw, held_out_pools
from gateway.lab.rows import Label, LabError, Row, Split, write_rows
from tests.lab import small_world


def rows(count: int, source: str, label: Label, split: Split = "test") -> list[Row]:
    """Rows with nothing in common."""
    return [
        Row(
            id=f"{source}-{label}-{split}-{i}",
            source=source,
            text=f"{source} {label} {split} {i * 7919}" * (i % 3 + 1),
            label=label,
            split=split,
        )
        for i in range(count)
    ]


def distinct(count: int, source: str, label: Label, split: Split = "test") -> dict[tuple[str, str], list[Row]]:
    return {(source, label): rows(count, source, label, split)}


@pytest.mark.parametrize(
    ("name", "size", "violations"), [("eval-1000", 1000, 100), ("eval-10k", 10000, 1000), ("stream", 10000, 150)]
)
def test_recipes_add_up(name: str, size: int, violations: int) -> None:
    """Each set has its size and share of violations, and half of its clean rows are hard to tell from violations."""
    recipe = RECIPES[name]
    clean = sum(recipe.clean.values())
    assert (sum(recipe.violations.values()), clean) == (violations, size - violations)
    assert sum(n for source, n in recipe.clean.items() if source in OWN_SOURCES) >= clean / 2


def test_a_disk_that_refuses_leaves_the_earlier_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of which a part was written is not there; the reason is told."""
    sources, corpus = small_world.write_sources(tmp_path / "sources"), tmp_path / "corpus.jsonl.gz"
    small_world.write_corpus(corpus)
    build_frozen(sources, corpus, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    real = Path.write_bytes

    def full(path: Path, body: bytes) -> int:
        if "stream" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, body)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LabError, match=r"stream.*No space left on device; .* is as it was"):
        build_frozen(sources, corpus, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_what_a_source_lacks_comes_from_others() -> None:
    """A short pool is topped up from the fullest one, so that the set keeps its size and its share."""
    pools = distinct(3, "a", "violation") | distinct(50, "b", "violation") | distinct(90, "b", "clean")
    chosen = draw(pools, Recipe({"a": 5, "b": 5}, {"b": 90}))
    found = describe(chosen)
    assert found["by_source"] == {"a/violation": 3, "b/violation": 7, "b/clean": 90}


def test_only_test_and_reserve_rows_are_frozen() -> None:
    """Training and calibration rows never enter a frozen set; nor does a reserve row whose twin is trained on."""
    twin = rows(1, "s", "clean", "train")[0]
    reserve = [
        Row(id="r1", source="s", text=twin.text + "!", label="clean", split="reserve"),
        Row(id="r2", source="s", text="quite another sentence altogether", label="clean", split="reserve"),
    ]
    pools = held_out_pools([twin, *reserve, *rows(1, "s", "clean", "calibration"), *rows(1, "s", "clean")])
    assert {r.id for r in pools["s", "clean"]} == {"r2", "s-clean-test-0"}


def test_without_sources_the_error_names_them(tmp_path: Path) -> None:
    """A set of one label only is refused, nothing is written, and the message says which sources are absent."""
    write_rows(tmp_path / "corpus.jsonl.gz", [])
    with pytest.raises(LabError, match="davidson2017"):
        build_frozen(tmp_path, tmp_path / "corpus.jsonl.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_marketplace_is_in_every_set() -> None:
    """The held-out hand's messages are a source of their own in every recipe, in both labels."""
    assert all(CORPUS in recipe.violations and CORPUS in recipe.clean for recipe in RECIPES.values())


def test_the_unseen_writer_is_in_no_recipe() -> None:
    """The second held-out hand's messages are a set of their own: no recipe draws from them."""
    assert not held_out_pools(rows(3, CORPUS, "clean", "unseen"))
