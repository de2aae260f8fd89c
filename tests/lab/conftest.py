"""A random two-layer Llama with a word-level tokeniser, and a deployment in small, both made on the spot."""

from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gateway.lab import prompted
from gateway.lab.evaluate import evaluate
from gateway.lab.systems import load_task
from gateway.lab.train_cnn import WEIGHTS, train_cnn
from gateway.lab.train_previous import freeze_previous
from tests.lab import small_world
from tests.lab.small_world import World

ALPHABET = [chr(c) for c in range(32, 127)] + ["\n", "‹", "›"]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model folder: 2 layers, one token a character."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    vocabulary = {c: i for i, c in enumerate(["<unk>", "<|im_start|>", "<|im_end|>", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    ).save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llm_folder: Path) -> World:
    """A home with trained weights, a frozen previous system and a chosen prompt."""
    folder = tmp_path_factory.mktemp("small-world")
    home = small_world.write_home(folder / "home")
    sources = small_world.write_sources(folder / "sources")
    corpus = small_world.write_corpus(folder / "corpus.jsonl.gz")
    task = home / "tasks" / "small"
    config = small_world.cnn_config(sources, corpus, folder / "cnn")
    run = train_cnn(config)
    for suffix in (".safetensors", ".json"):
        (task / "prefilter").with_suffix(suffix).write_bytes((run / WEIGHTS).with_suffix(suffix).read_bytes())
    freeze_previous(msgspec.structs.replace(config, out=str(folder / "old")), task / "previous")
    loaded = load_task(home, "small")
    rows = prompted.validation_rows(sources, corpus, per_label=3)
    letters = {name: {"clean": "A", "violation": "B"} for name in ("prompted.v1", "prompted.v2")}
    choice = prompted.choose(loaded, tiny_llm_folder, rows, folder / "readings", candidates=letters)
    prompted.write(choice, task)
    data = small_world.write_frozen(folder / "eval-small.jsonl.gz")
    return World(home, sources, corpus, data, folder / "readings", tiny_llm_folder)


@pytest.fixture(scope="session")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one evaluation."""
    out = tmp_path_factory.mktemp("evaluation") / "run"
    evaluate(world.evaluation(out))
    return out
