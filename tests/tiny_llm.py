"""A tiny random Llama with a byte-level tokeniser, made on the spot: the real serving path without a download."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from gateway.adapters.causal_lm import add_lora, save_adapter

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a 2-layer Llama (safetensors) with tokenizer.json to `folder`. Letters and all bytes are single tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    size = _tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Greedy, it never ends an answer by itself: tests choose how long one runs. Sampling hot, it does.
        model.get_input_embeddings().weight[2] = 0.0
    model.save_pretrained(folder)
    return folder


def tiny_adapter(model_folder: Path, folder: Path, seed: int = 1) -> Path:
    """Write a random LoRA adapter for a tiny model, one that changes what it says."""
    torch.manual_seed(seed)
    tuned = add_lora(LlamaForCausalLM.from_pretrained(model_folder), rank=4, alpha=8, from_layer=0)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.5)
    save_adapter(tuned, folder, "tiny", torch.float32)
    return folder


def _tokenizer(folder: Path) -> int:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id_ for id_, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return len(vocabulary)
