"""Files of one's own as sources: who stays together, and that trainings draw from them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli.lab import lab
from gateway.lab.cnn_mix import CnnMixConfig, draw_epoch, read_pools
from gateway.lab.mix import MixConfig, moderation_mix
from gateway.lab.own_sources import add_files
from gateway.lab.rows import OWN_FILES, LabError, read_public, read_rows
from tests.lab import small_world

THREADS = 40


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Four messages in each of forty threads; the last of each thread is nearly the first of the next."""
    lines = []
    for thread in range(THREADS):
        for turn in range(4):
            n = thread + (turn == 3)
            words = " ".join(f"word{(n * 7 + turn % 3 * 131 + k) * 37 % 1009}" for k in range(12))
            text = f"{words} again" if turn == 3 else words
            policy = "abuse" if turn == 1 else None
            label = "violation" if policy else "clean"
            lines.append({"text": text, "label": label, "policy": policy, "group": f"thread-{thread // 8 * 8}"})
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_no_group_straddles_a_split(mine: Path, tmp_path: Path) -> None:
    """Threads stay on one side, in training, calibration and test alike, and with them what is nearly theirs."""
    (added,) = add_files([mine], None, tmp_path / "out")
    rows, _ = read_public(tmp_path / "out", ["mine"])
    assert added.rows == len(rows) == 4 * THREADS
    sides = {row.group: {r.split for r in rows if r.group == row.group} for row in rows}
    assert {len(found) for found in sides.values()} == {1}
    assert sum(added.by_side.values()) == added.rows
    assert added.by_policy == {"abuse": THREADS}


def test_near_duplicates_make_two_groups_one(tmp_path: Path) -> None:
    """Two threads that share a sentence but for a word are one group; a third one is not."""
    lines = ["text,label,group", *(f"{text},{label},{group}" for text, label, group in (
        ("please come on Tuesday at nine and bring the long ladder with you", "clean", "b"),
        ("please come on Tuesday at nine and bring the long ladder with you!", "clean", "a"),
        ("nobody asked you", "violation", "b"),
        ("where may I park", "clean", "c"),
    ))]  # fmt: skip
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    add_files([tmp_path / "mine.csv"], None, tmp_path / "out")
    assert [row.group for row in read_public(tmp_path / "out", ["mine"])[0]] == ["a", "a", "a", "c"]


def test_both_trainings_draw_from_ones_own_file(mine: Path, tmp_path: Path) -> None:
    """Beside the public sources that were linked; test and calibration rows stay out; `lab eval` can read the rest."""
    sources, corpus = small_world.write_sources(tmp_path / "sources"), tmp_path / "corpus.jsonl.gz"
    small_world.write_corpus(corpus)
    (added,) = add_files([mine], sources, tmp_path / "out")
    trained = {row.id for row in read_public(tmp_path / "out", ["mine"])[0] if row.split == "train"}
    pools = read_pools(tmp_path / "out", corpus, CnnMixConfig())
    drawn = {row.id for row in draw_epoch(pools, CnnMixConfig(), 0) if row.source == "mine"}
    mix = moderation_mix(tmp_path / "out", corpus, MixConfig(further_per_label=20))
    seen = [row for row in mix.train if row.source == "mine"]
    assert 0 < len(drawn) <= len(trained)
    assert drawn <= trained
    assert {row.id for row in seen} <= trained
    assert {label: sum(r.label == label for r in seen) for label in ("clean", "violation")} == {
        "clean": 20, "violation": 20,
    }  # fmt: skip
    assert any(row.source == "convabuse" for row in mix.train)
    assert len(read_rows(tmp_path / "out" / "test" / "mine.jsonl.gz")) == sum(
        count for side, count in added.by_side.items() if side.startswith("test/")
    )


def test_the_command_says_what_it_found(mine: Path, tmp_path: Path) -> None:
    """Counts by side and policy on the terminal and in files.json; a taken name and a bad file leave nothing."""
    out = tmp_path / "out"
    said = CliRunner().invoke(lab, ["data", "--file", str(mine), "--out", str(out)], env={"GATEWAY_DATA_DIR": ""})
    assert json.loads(said.output) == json.loads((out / OWN_FILES).read_text())
    taken = tmp_path / "edos.jsonl"
    taken.write_bytes(mine.read_bytes())
    with pytest.raises(LabError, match="there is a source edos already"):
        add_files([taken], None, tmp_path / "second")
    (tmp_path / "bad.csv").write_text("message\nhello\n")
    with pytest.raises(LabError, match="lacks text and label"):
        add_files([mine, tmp_path / "bad.csv"], None, tmp_path / "second")
    assert not (tmp_path / "second").exists()
