"""The prefix cache: what it keeps, and that it changes no answer."""

from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import httpx
import pytest
import torch

from gateway.adapters.causal_lm import load_base, load_tokenizer
from gateway.local.child import free_port
from gateway.local.llm import Options, load, running
from gateway.local.llm.attention import KeysValues, read_prompts, read_tokens
from gateway.local.llm.engine import Engine, Limits
from gateway.local.llm.jobs import Event, Generation, Job, Step
from gateway.local.llm.metrics import Metrics
from gateway.local.llm.prefixes import BLOCK, PrefixCache
from gateway.local.llm.text import Text

POLICY = list(range(10, 10 + 5 * BLOCK + 3))


@pytest.fixture(scope="module")
def model(tiny_llm_folder: Path) -> Iterator[torch.nn.Module]:
    with torch.inference_mode():
        yield load_base(tiny_llm_folder)


def _learn(cache: PrefixCache, model: torch.nn.Module, prompt: list[int], adapter: str = "") -> None:
    kept = cache.longest(adapter, prompt)
    entry = cache.get(adapter, kept)
    assert entry is not None
    _, context = read_prompts(model, [prompt[len(kept) :]], entry)
    cache.learn(adapter, [prompt], context)


def test_kept_when_shared_twice(model: torch.nn.Module) -> None:
    """A prefix is kept once two prompts share it, cut to whole blocks, for the adapter that they were for."""
    cache = PrefixCache(1000)
    _learn(cache, model, [*POLICY, 200, 201])
    assert cache.longest("", [*POLICY, 210]) == ()
    _learn(cache, model, [*POLICY, 202, 203])
    assert cache.longest("", [*POLICY, 210]) == tuple(POLICY[: 5 * BLOCK])
    assert cache.longest("other", [*POLICY, 210]) == ()
    assert cache.longest("", POLICY[: 5 * BLOCK]) == ()


def test_bounded(model: torch.nn.Module) -> None:
    """The cache never holds more tokens than it may; the entry that was used longest ago goes first."""
    cache = PrefixCache(10 * BLOCK)
    for start in (3, 4, 5):
        for last in (200, 201):
            _learn(cache, model, [start, *POLICY, last])
    held = [bool(cache.longest("", [start, *POLICY, 210])) for start in (3, 4, 5)]
    assert held == [False, True, True]


def test_off(model: torch.nn.Module) -> None:
    """Without room nothing is kept."""
    cache = PrefixCache(0)
    for last in (200, 201, 202):
        _learn(cache, model, [*POLICY, last])
    assert cache.longest("", [*POLICY, 210]) == ()


def test_a_prefix_that_had_to_go_between_is_read_again(tiny_llm_folder: Path, model: torch.nn.Module) -> None:
    """Prompts of one turn, of which the first take the room that the others' prefix stood in, are all answered."""
    text = Text(load_tokenizer(tiny_llm_folder).backend_tokenizer, [])
    engine = Engine({"": model}, text, Metrics(), Limits(prefix_tokens=6 * BLOCK, gather_s=0.5))
    said: SimpleQueue[Event] = SimpleQueue()
    engine.start()
    for turn in ([3, 3], [3, 2, 2]):
        for last, first in enumerate(turn):
            generation = Generation(prompt=[first, *POLICY, 200 + last], adapter="", max_new_tokens=1)
            engine.submit(Job(generation=generation, emit=said.put, queued_at_s=0.0))
        assert all(isinstance(said.get(timeout=30), Step) for _ in turn)
    assert engine.works
    engine.stop()


def test_padding_and_prefix_change_nothing(model: torch.nn.Module) -> None:
    """Rows of different length behind a shared prefix give the logits of each row read alone, now and a token later."""
    rows = [[*POLICY, 60], [*POLICY, 70, 71, 72, 73], [*POLICY, 80, 81]]
    _, prefix = read_prompts(model, [POLICY], KeysValues())
    logits, context = read_prompts(model, [row[len(POLICY) :] for row in rows], prefix.cache)
    later, _ = read_tokens(model, [90, 91, 92], context.keep([0, 1, 2]))
    for i, row in enumerate(rows):
        alone, _ = read_prompts(model, [row], KeysValues())
        longer, _ = read_prompts(model, [[*row, 90 + i]], KeysValues())
        torch.testing.assert_close(logits[i], alone[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(later[i], longer[0], atol=1e-4, rtol=0)


def test_joined_batches(model: torch.nn.Module) -> None:
    """Batches of different length joined, and thinned again, go on as each row would alone."""
    rows = [[10, 11, 12, 13, 14], [20, 21], [30, 31, 32]]
    _, first = read_prompts(model, rows[:1], KeysValues())
    _, second = read_prompts(model, rows[1:], KeysValues())
    logits, _ = read_tokens(model, [40, 42], second.joined(first).keep([2, 1]))
    for got, row in zip(logits, ([*rows[0], 40], [*rows[2], 42]), strict=True):
        alone, _ = read_prompts(model, [row], KeysValues())
        torch.testing.assert_close(got, alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("adapter", [None, "tiny"])
async def test_same_answers_with_and_without(tiny_llm_folder: Path, llm_server: str, adapter: str | None) -> None:
    """Through HTTP, log-probs with the prefix cache and without it agree within 1e-4, and the cache was used."""
    adapters = {"tiny": tiny_llm_folder / "adapter"}
    plain = load(tiny_llm_folder, adapters, Options(dtype="float32", threads=1, prefix_tokens=0))
    parameters = {"max_new_tokens": 4, "do_sample": False, "details": True, "top_n_tokens": 5, "adapter_id": adapter}
    texts = [f"<|im_start|>system\n{'No abuse, no spam. ' * 8}<|im_end|>\nmessage {n * 'very '}{n}" for n in range(4)]
    with running(plain, "127.0.0.1", free_port()) as plain_url:
        async with httpx.AsyncClient(timeout=30) as http:
            for text in texts:
                body = {"inputs": text, "parameters": parameters}
                cached, whole = [(await http.post(f"{u}/generate", json=body)).json() for u in (llm_server, plain_url)]
                assert cached["generated_text"] == whole["generated_text"]
                for left, right in zip(cached["details"]["top_tokens"], whole["details"]["top_tokens"], strict=True):
                    assert [t["logprob"] for t in left] == pytest.approx([t["logprob"] for t in right], abs=1e-4)
            with_cache, without = [(await http.get(f"{u}/metrics")).text for u in (llm_server, plain_url)]
    assert "taskgate_prefix_cached_tokens 0" not in with_cache
    assert "taskgate_prefix_cached_tokens 0" in without
