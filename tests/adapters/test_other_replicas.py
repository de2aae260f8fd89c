"""Hedges, barred replicas and fallback models: who else is asked where one server is slow, wrong or silent."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from chain_stage import ITEM, Metered, declared_model, declared_stage, files_for
from fault_server import Behaviour, FaultServer, hang, hang_up, held_until, rubbish, serving, status
from msgspec.structs import replace
from tokenizers import Tokenizer

from gateway.adapters.chain_builder import ChainBuilder
from gateway.adapters.model_port import within
from gateway.core.cascade import Runner, StageFailed
from gateway.core.task import Fallback

CALIBRATION = '{"method": "platt", "a": 1.0, "b": %s}'


class Servers:
    """Two model servers, and stages over them."""

    def __init__(self, builder: ChainBuilder, folder: Path, servers: list[FaultServer], urls: list[str]) -> None:
        self.builder, self.folder, self.servers, self.urls = builder, folder, servers, urls

    def replicated(self, **stage: Any) -> Runner:
        """A stage over one model with both servers as its replicas."""
        declared = declared_stage(**stage)
        model = declared_model(*self.urls, tokenizer="tokenizer.json")
        return self.builder.build(declared, files_for(declared, model, self.folder), "stage[0]")

    def in_order(self, **stage: Any) -> Runner:
        """A stage over two models, the second of which is the fallback, with a calibration of its own."""
        other = Fallback(model="other", calibration="other.json")
        declared = declared_stage(**{"calibration": "own.json", "fallback": (other,), **stage})
        first, second = (declared_model(url, tokenizer="tokenizer.json") for url in self.urls)
        files = files_for(declared, first, self.folder)
        assert files.model is not None
        files = replace(files, fallback=(replace(files.model, name="other", declared=second),))
        return self.builder.build(declared, files, "stage[0]")

    @property
    def asked(self) -> list[int]:
        """How often each was asked."""
        return [len(server.asked) for server in self.servers]


@pytest.fixture
async def two(tmp_path: Path, tiny_llm_folder: Path) -> AsyncIterator[Servers]:
    tokenizer = tiny_llm_folder / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    for name, b in (("own", 0.0), ("other", 2.0)):
        (tmp_path / f"{name}.json").write_text(CALIBRATION % b, "utf-8")
    servers = [FaultServer(Tokenizer.from_file(str(tokenizer))) for _ in range(2)]
    builder = ChainBuilder()
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(server)) for server in servers]
        yield Servers(builder, tmp_path, servers, urls)
    await builder.aclose()


async def test_the_replica_with_the_least_to_do_is_asked(two: Servers) -> None:
    """While one thinks, all others go to the other; without anything under way they take turns."""
    think, runner = asyncio.Event(), two.replicated(timeout_s=60, deadline_s=60)
    two.servers[0].script.append(held_until(think))
    first = asyncio.create_task(runner.run(ITEM, Metered().meter))
    await two.servers[0].hung.wait()
    for _ in range(3):
        await runner.run(ITEM, Metered().meter)
    assert two.asked == [1, 3]
    think.set()
    await first
    for _ in range(4):
        await runner.run(ITEM, Metered().meter)
    assert two.asked == [4, 4]


async def test_without_the_option_nobody_is_asked_twice(two: Servers) -> None:
    """Hedging is off by default: one question, one call."""
    metered = Metered()
    await two.replicated().run(ITEM, metered.meter)
    assert sum(two.asked) == 1
    assert metered.outcomes == ["ok"]


async def test_a_slow_replica_is_hedged_by_another_and_both_calls_are_booked(two: Servers) -> None:
    """After the pause the other replica is asked; its answer counts, and the call that was given up is unsettled."""
    two.servers[0].usual = hang
    metered, began = Metered(), time.monotonic()
    await two.replicated(hedge_after_s=0.2, timeout_s=60, deadline_s=60).run(ITEM, metered.meter)
    assert 0.2 <= time.monotonic() - began < 30
    assert two.asked == [1, 1]
    calls = sorted(metered.calls, key=lambda call: call.outcome)
    assert [(call.outcome, call.settled) for call in calls] == [("cancelled", False), ("ok", True)]
    assert calls[0].usage.input_tokens >= calls[1].usage.input_tokens, "what nobody knows is booked at its bound"


async def test_a_quick_answer_or_a_lone_replica_is_not_hedged(two: Servers) -> None:
    """Where the answer comes in time, or no other replica takes requests, there is one call."""
    await two.replicated(hedge_after_s=30).run(ITEM, Metered().meter)
    assert sum(two.asked) == 1
    runner = two.replicated(hedge_after_s=0.05, timeout_s=0.5, deadline_s=30, retries=0)
    (access,) = two.builder._accesses.values()
    access.replicas.bar(two.urls[1], "it is wrong", "test")
    two.servers[0].usual = hang
    metered = Metered()
    with pytest.raises(StageFailed, match="model_timeout"):
        await runner.run(ITEM, metered.meter)
    assert metered.outcomes == ["timeout"]


async def test_a_barred_replica_gets_no_request_but_those_meant_for_it(two: Servers) -> None:
    """Only `within(only=…)` reaches it; with every replica barred the model is unavailable, at once."""
    runner = two.replicated()
    (access,) = two.builder._accesses.values()
    access.replicas.bar(two.urls[0], "serves something else", "test")
    for _ in range(4):
        await runner.run(ITEM, Metered().meter)
    assert two.asked == [0, 4]
    with within(only=two.urls[0]):
        await runner.run(ITEM, Metered().meter)
    assert two.asked == [1, 4]
    access.replicas.bar(two.urls[1], "too", "test")
    with pytest.raises(StageFailed, match="model_unavailable"):
        await runner.run(ITEM, Metered().meter)
    access.replicas.bar(two.urls[0], "", "test")
    await runner.run(ITEM, Metered().meter)
    assert two.asked == [2, 4]


SILENT: dict[str, Behaviour] = {
    "hangs up": hang_up,
    "hangs": hang,
    "rubbish": rubbish(b"<html>"),
    "full": status(429, "overloaded"),
    "broken": status(500, "generation"),
}


@pytest.mark.parametrize("name", SILENT)
async def test_where_a_model_cannot_answer_the_next_one_does(two: Servers, name: str) -> None:
    """Within the stage's one deadline, by its own calibration, and booked under its own name."""
    plain = (await two.in_order().run(ITEM, Metered().meter)).score
    two.servers[0].usual = SILENT[name]
    metered, began = Metered(), time.monotonic()
    found = await two.in_order(timeout_s=1, deadline_s=30, retries=1).run(ITEM, metered.meter)
    assert time.monotonic() - began < 30
    assert plain is not None
    assert found.score is not None
    assert found.score > plain, "the calibration of the fallback adds 2 to the log-odds"
    assert metered.calls[-1].model == "other"


async def test_a_model_that_refuses_or_is_fooled_has_no_fallback(two: Servers) -> None:
    """A wrong request is wrong elsewhere too, and a message must not shop around for a model that it fools."""
    two.servers[0].script.append(status(422, "validation"))
    with pytest.raises(StageFailed, match="model_refused"):
        await two.in_order().run(ITEM, Metered().meter)
    two.servers[0].says = [{"C": -0.01, "A": -9.0, "B": -9.0}]
    with pytest.raises(StageFailed, match="low_label_mass"):
        await two.in_order(min_label_mass=0.9).run(ITEM, Metered().meter)
    assert two.asked[1] == 0


async def test_the_last_model_has_its_share_of_the_time(two: Servers) -> None:
    """However patient the first one is: half of the deadline is left for the second."""
    two.servers[0].usual = hang
    began = asyncio.get_running_loop().time()
    await two.in_order(timeout_s=4.0, deadline_s=4.0, retries=3).run(ITEM, Metered().meter)
    assert 2.0 <= asyncio.get_running_loop().time() - began < 4.0
