"""Reading, splitting and mixing labelled rows."""

import gzip
import json
from collections import Counter
from pathlib import Path

import msgspec
import pyarrow
import pyarrow.parquet
import pytest

from gateway.lab.corpus import pack_corpus
from gateway.lab.duplicates import near_duplicate_groups
from gateway.lab.files import read_file
from gateway.lab.mix import MixConfig, drop_twins_of_held_out, moderation_mix, read_mix
from gateway.lab.rows import HELD_OUT_HANDS, LabError, Row, read_corpus, read_public, rows_hash

HELD_OUT_HAND = next(hand for hand, split in HELD_OUT_HANDS.items() if split == "test")
WORDS = ("ladder", "tap", "garden", "violin", "sofa", "wedding", "puppy", "fence", "ledger", "window", "boiler", "tent")


def sentence(seed: int) -> str:
    """Eight words that differ enough from those of other seeds."""
    return " ".join(WORDS[(seed * 7 + i * (seed % 11 + 1)) % len(WORDS)] + str(seed * i) for i in range(8))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two public sources with both splits; every other one is absent."""
    for number, name in enumerate(("davidson2017", "banking77")):
        lines = [
            {
                "id": f"{name}-{i}",
                "source": name,
                "text": sentence(1000 * number + i),
                "split": "test" if i % 5 == 0 else "train",
                "label": "violation" if i % 2 and not number else "clean",
                "policy": "abuse" if i % 2 and not number else None,
            }
            for i in range(120)
        ]
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return tmp_path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A packed corpus of two hands, one of them the held-out one."""
    for hand in ("alder", HELD_OUT_HAND):
        lines = [
            {
                "id": f"{hand}-{i:04d}",
                "hand": hand,
                "sender_role": "pro",
                "message": f"{hand} {sentence(5000 + i + len(hand) * 99)}",
                "label": "violation" if i % 2 else "clean",
                "policy": "spam_scam" if i % 2 else None,
                "difficulty": "plain",
            }
            for i in range(60)
        ]
        (tmp_path / f"{hand}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pack_corpus(tmp_path, tmp_path / "corpus.jsonl.gz", ["alder", HELD_OUT_HAND])
    return tmp_path / "corpus.jsonl.gz"


def row(text: str, split: str = "train", **more: str) -> Row:
    """A clean row."""
    return msgspec.convert({"id": text, "source": "s", "text": text, "label": "clean", "split": split, **more}, Row)


def test_near_duplicates_share_a_group() -> None:
    """Case, spaces and one letter make no new message; other words do."""
    texts = [sentence(1), sentence(2), sentence(1).upper() + " !", sentence(3)]
    assert near_duplicate_groups(texts) == [0, 1, 0, 3]


def test_twins_of_held_out_rows_are_not_trained_on() -> None:
    """A near-duplicate never stands on both sides of a split, nor twice on one."""
    train = [row(sentence(1) + "!"), row(sentence(2)), row(sentence(2) + " .")]
    assert drop_twins_of_held_out(train, [row(sentence(1), "test")]) == [train[1]]


def test_the_mix_is_the_same_twice(sources: Path, corpus: Path) -> None:
    """The same files and seed give the same rows in the same order; another seed another order."""
    first, second = (moderation_mix(sources, corpus, MixConfig()) for _ in range(2))
    assert (first.train, first.data_hash) == (second.train, second.data_hash)
    assert moderation_mix(sources, corpus, MixConfig(seed=1)).train != first.train


def test_the_mix_holds_training_rows_only(sources: Path, corpus: Path) -> None:
    """No test row, no calibration row and no row of the held-out hand is trained on."""
    mix = moderation_mix(sources, corpus, MixConfig())
    assert {r.split for r in mix.train} == {"train"}
    assert HELD_OUT_HAND not in {r.hand for r in mix.train}
    assert {r.split for r in mix.validation} == {"calibration"}


def test_a_source_of_violations_gives_as_many_clean_rows(sources: Path, corpus: Path) -> None:
    """Both labels of a source are drawn at the same number, so that the source tells nothing."""
    config = MixConfig(per_label={"davidson2017": 20}, service={})
    counts = Counter(r.label for r in moderation_mix(sources, corpus, config).train if r.source == "davidson2017")
    assert counts == {"clean": 20, "violation": 20}


def test_a_second_round_draws_other_rows(sources: Path, corpus: Path) -> None:
    """Passing over what the first round drew gives fresh rows; passing over a whole pool comes round to the same."""

    def drawn(**skip: int) -> set[str]:
        config = MixConfig(per_label={"davidson2017": 15}, service={"banking77": 15}, skip=skip)
        return {r.id for r in moderation_mix(sources, corpus, config).train if r.source != "marketplace"}

    first = drawn()
    assert not first & drawn(davidson2017=15, banking77=15)
    pool = sum(r.split == "train" for r in read_public(sources, ["banking77"])[0])
    assert drawn(banking77=pool) == first


def test_a_mix_file_sets_what_it_names(tmp_path: Path) -> None:
    """TOML and JSON say the same; a seed in the file wins over the one given; an unknown key is refused by name."""
    (tmp_path / "mix.toml").write_text("corpus_passes = 2\nskip = { edos = 9 }\n")
    (tmp_path / "mix.json").write_text('{"corpus_passes": 2, "skip": {"edos": 9}}')
    expected = MixConfig(seed=5, corpus_passes=2, skip={"edos": 9})
    assert read_mix(tmp_path / "mix.toml", 5) == read_mix(tmp_path / "mix.json", 5) == expected
    assert read_mix(None, 5) == MixConfig(seed=5)
    (tmp_path / "mix.toml").write_text("seed = 8\n")
    assert read_mix(tmp_path / "mix.toml", 5).seed == 8
    for bad in ("passes = 2\n", "skip = 3\n", "skip ="):
        (tmp_path / "mix.toml").write_text(bad)
        with pytest.raises(LabError, match=r"mix\.toml"):
            read_mix(tmp_path / "mix.toml", 5)
    with pytest.raises(LabError, match="absent"):
        read_mix(tmp_path / "absent.toml", 5)


def test_absent_sources_are_skipped_and_named(sources: Path, corpus: Path) -> None:
    """A missing file is no error, and the facts of the run say so."""
    rows, absent = read_public(sources, ["davidson2017", "edos"])
    assert len(rows) == 120
    assert absent == ["edos"]
    assert "edos" in moderation_mix(sources, corpus, MixConfig()).absent


def test_a_row_keeps_its_side_when_others_come_or_go(corpus: Path) -> None:
    """The split depends on the id alone."""
    sides = {r.id: r.split for r in read_corpus(corpus)}
    assert {sides[i] for i in sides if i.startswith(HELD_OUT_HAND)} == {"test"}
    halves = [sum(s == half for s in sides.values()) for half in ("platt", "calibration")]
    assert all(halves)
    assert sum(halves) < 20


def test_packing_refuses_a_violation_without_policy(tmp_path: Path) -> None:
    """A label that its policy contradicts is named with the row's id, and nothing is written."""
    line = {
        "id": "x-1",
        "hand": "x",
        "sender_role": "pro",
        "message": "m",
        "label": "violation",
        "policy": None,
        "difficulty": "obvious",
    }
    (tmp_path / "x.jsonl").write_text(json.dumps(line))
    with pytest.raises(LabError, match="x-1: label violation with policy None"):
        pack_corpus(tmp_path, tmp_path / "out.jsonl.gz", ["x"])
    assert not (tmp_path / "out.jsonl.gz").exists()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_anyones_file_is_read(tmp_path: Path, kind: str) -> None:
    """CSV, JSONL and Parquet with text and label become the same rows."""
    records = [{"text": "hello, you", "label": "clean"}, {"text": "bad", "label": "violation"}]
    path = tmp_path / f"mine.{kind}"
    if kind == "csv":
        path.write_text('text,label\n"hello, you",clean\nbad,violation\n')
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    assert [(r.text, r.label, r.source, r.split) for r in read_file(path)] == [
        ("hello, you", "clean", "mine", "test"),
        ("bad", "violation", "mine", "test"),
    ]


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.csv", "message,label\nhi,clean\n", "row 1 lacks text"),
        ("b.csv", "text,label\n", "no rows"),
        ("c.csv", "text,label\nhi,clean\n", "every row is clean"),
        ("d.csv", "text,label\nhi,good\n", "Invalid enum value 'good'"),
        ("e.jsonl", "{not json}\n", "e.jsonl:1"),
        ("f.xlsx", "?", "unknown kind of file"),
        ("g.parquet", "?", "g.parquet"),
        ("h.jsonl.gz", "?", "h.jsonl.gz"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path: Path, name: str, body: str, message: str) -> None:
    """What cannot be read says which file, which row and why."""
    (tmp_path / name).write_text(body)
    with pytest.raises(LabError, match=message):
        read_file(tmp_path / name)


def test_the_hash_ignores_order() -> None:
    """The data hash is that of the set of rows."""
    rows = [row(sentence(i)) for i in range(5)]
    assert rows_hash(rows) == rows_hash(rows[::-1]) != rows_hash(rows[1:])
