"""Training the prefilter on a world in small: what is drawn, what is learnt, what is refused."""

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch

from gateway.adapters.prefilter.reading import Alphabet, Reader, packed
from gateway.adapters.prefilter.weights import load_prefilter
from gateway.lab.cnn_mix import CnnMixConfig, draw_epoch, read_pools
from gateway.lab.lexicon import choose_words, first_table, nearest
from gateway.lab.rows import CORPUS, LabError, read_corpus
from gateway.lab.train_cnn import WEIGHTS, CnnConfig, logits, train_cnn, watch

from . import small_world


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CnnConfig:
    """Sources, a corpus and a run folder to be."""
    folder = tmp_path_factory.mktemp("train-cnn")
    sources = small_world.write_sources(folder / "sources")
    corpus = small_world.write_corpus(folder / "corpus.jsonl.gz")
    return small_world.cnn_config(sources, corpus, folder / "run")


@pytest.fixture(scope="module")
def run(config: CnnConfig) -> Path:
    """A finished run."""
    return train_cnn(config)


def test_run_learns_and_records_what_it_learnt_from(run: Path, config: CnnConfig) -> None:
    """Messages of the held-out writer are ranked; metrics.json names data, counts, absent sources and every epoch."""
    prefilter = load_prefilter(run / WEIGHTS)
    held_out = [row for row in read_corpus(Path(config.corpus)) if row.split == "test"]
    found = watch(held_out, logits(prefilter.network, prefilter.reader, [row.text for row in held_out]))
    assert found[f"auc/{CORPUS}"] > 0.9
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["config"]["seed"] == config.seed
    assert len(metrics["epochs"]) == config.epochs
    assert metrics["epochs"][-1]["loss"] < metrics["epochs"][0]["loss"]
    assert "davidson2017" in metrics["absent_sources"]
    assert metrics["rows"]["convabuse/violation"] > 0
    sidecar = json.loads((run / WEIGHTS).with_suffix(".json").read_text())
    assert sidecar["training"]["data_sha256"] == metrics["data_sha256"]


def test_same_seed_same_weights(run: Path, config: CnnConfig, tmp_path: Path) -> None:
    """Training again gives the same bytes."""
    again = train_cnn(msgspec.structs.replace(config, out=str(tmp_path / "again")))
    assert (again / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()


def test_no_held_out_row_is_drawn(config: CnnConfig) -> None:
    """Neither the held-out writer, nor test or calibration rows, nor any twin of them is trained on."""
    assert config.sources is not None
    pools = read_pools(Path(config.sources), Path(config.corpus), config.mix)
    plain = msgspec.structs.replace(config.mix, disguised=0.0, joined=0.0)
    drawn = draw_epoch(pools, plain, epoch=0)
    assert {row.split for row in drawn} == {"train"}
    assert not {row.text for row in drawn} & {row.text for row in pools.watched}
    assert all(row.hand != "fir" for row in drawn)


def test_an_epoch_holds_the_mix_that_was_asked_for(config: CnnConfig) -> None:
    """The corpus comes several times, a violation source gives at most so much, and epochs differ."""
    assert config.sources is not None
    mix = CnnMixConfig(per_label=3, extra_clean=2, service=4, corpus_passes=2)
    pools = read_pools(Path(config.sources), Path(config.corpus), mix)
    drawn = draw_epoch(pools, mix, epoch=0)
    counts = Counter((row.source, row.label) for row in drawn)
    assert counts["convabuse", "violation"] == 3
    assert counts["convabuse", "clean"] == 5
    assert counts["multidogo", "clean"] == 4
    assert counts[CORPUS, "violation"] == 2 * len(pools.train[CORPUS, "violation"])
    assert draw_epoch(pools, mix, epoch=0) == drawn
    assert draw_epoch(pools, mix, epoch=1) != drawn


def test_without_any_source_the_corpus_suffices(config: CnnConfig) -> None:
    """Public data are optional; what is absent is named."""
    pools = read_pools(None, Path(config.corpus), config.mix)
    assert set(pools.train) == {(CORPUS, "clean"), (CORPUS, "violation")}
    assert "sgd_services_homes" in pools.absent


def test_one_label_only_is_refused_and_earlier_results_stay(config: CnnConfig, run: Path, tmp_path: Path) -> None:
    """A corpus without violations trains nothing, says why, and leaves the run folder alone."""
    before = (run / "metrics.json").read_bytes()
    rows = [
        {"id": f"a-{i}", "hand": "alder", "sender_role": "pro", "message": f"{w} comes", "label": "clean",
         "policy": None, "difficulty": "plain"}
        for i, w in enumerate(("the ladder", "a painter", "my neighbour", "her plumber", "our cleaner"))
    ]  # fmt: skip
    corpus = tmp_path / "clean.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LabError, match="all of one label"):
        train_cnn(msgspec.structs.replace(config, sources=None, corpus=str(corpus), out=str(run)))
    assert (run / "metrics.json").read_bytes() == before


def test_texts_that_are_too_long_have_no_score(run: Path) -> None:
    """NaN, not a number that could clear them; the others keep their place."""
    prefilter = load_prefilter(run / WEIGHTS)
    long, short = "word " * 2000, "the tap drips"
    alone = logits(prefilter.network, prefilter.reader, [short])
    found = logits(prefilter.network, prefilter.reader, [long, short, long])
    assert found[0] != found[0]
    assert found[1] == pytest.approx(alone[0], abs=1e-5)


def test_words_come_by_use(tiny_base: Path) -> None:
    """The lexicon holds what stands in enough texts, the most used first, and no more than asked."""
    texts = ["the tap drips", "the tap", "the drain", "the the the"]
    assert choose_words(texts, None, size=10, least=2) == ["the", "tap"]
    assert choose_words(texts, tiny_base, size=1, least=1) == ["the"]


def test_first_vectors_come_from_the_base_model(tiny_base: Path) -> None:
    """Words of like tokens start out alike, and letter groups come near the words that they spell."""
    words = ["drip", "drips", "window"]
    alphabet = Alphabet(
        max_bytes=99, max_words=9, buckets=512, shortest_group=3, longest_group=4, lexicon=packed(words)
    )
    table, random = (first_table(alphabet, 8, base, seed=1) for base in (tiny_base, None))
    assert table.shape == random.shape == (Reader(alphabet).table_rows, 8)
    assert not table[0].any()
    assert nearest(table, len(words), 1)[1, 0] == 2
    spelled = table[list(Reader(alphabet).groups_of("drips"))].mean(0)
    assert torch.cosine_similarity(spelled, table[2], dim=0) > 0.9


def test_a_base_of_few_dimensions_fills_the_first_ones(tiny_base: Path) -> None:
    """Wider vectors than the base has are not an error: what the base cannot say stays random."""
    words = packed(["drip", "drips", "window"])
    alphabet = Alphabet(max_bytes=99, max_words=9, buckets=8, shortest_group=3, longest_group=4, lexicon=words)
    wide = first_table(alphabet, 40, tiny_base, seed=1)
    assert wide.shape[1] == 40
    assert wide.isfinite().all()


def test_a_base_without_embeddings_is_refused(tmp_path: Path) -> None:
    """A folder that is no model folder is named in the error."""
    with pytest.raises(LabError, match=r"tokenizer\.json"):
        choose_words(["the tap"], tmp_path, size=3, least=1)
