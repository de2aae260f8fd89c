"""One contract for both model doors: what is asked, what is read, what is counted, and how each failure ends."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from chain_stage import ITEM, Metered, declared_model, declared_stage, files_for
from fault_server import Behaviour, FaultServer, half, hang, hang_up, held_until, rubbish, serving, status, uncounted
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from gateway.adapters import replicas
from gateway.adapters.chain_builder import ChainBuilder
from gateway.core.cascade import Finding, Runner, StageFailed
from gateway.local.child import free_port

DOORS = ("tgi", "openai")
PATIENCE_S = 30.0
"""More than anything takes that is not meant to take for ever, on a machine however busy."""


class Stage:
    """A stage over some URLs; keyword arguments of `run` are fields of the stage, those of `built` of the model."""

    def __init__(self, builder: ChainBuilder, kind: str, folder: Path) -> None:
        self.builder, self.kind, self.folder = builder, kind, folder

    def built(self, *urls: str, stage: dict[str, Any] | None = None, **model: Any) -> Runner:
        own = {"kind": self.kind, "tokenizer": "tokenizer.json"}
        declared = declared_stage(**(stage or {}))
        files = files_for(declared, declared_model(*urls, **(own | model)), self.folder)
        return self.builder.build(declared, files, "stage[0]")

    async def run(self, *urls: str, **stage: Any) -> tuple[Finding, Metered]:
        metered = Metered()
        return await self.built(*urls, stage=stage).run(ITEM, metered.meter), metered

    async def fail(self, *urls: str, **stage: Any) -> tuple[str, Metered]:
        metered = Metered()
        with pytest.raises(StageFailed) as failed:
            await self.built(*urls, stage=stage).run(ITEM, metered.meter)
        return failed.value.reason, metered


@pytest.fixture
def stage(builder: ChainBuilder, kind: str, tiny_llm_folder: Path) -> Stage:
    return Stage(builder, kind, tiny_llm_folder)


def _closed_port() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def test_what_the_server_counted_is_settled(stage: Stage, server: FaultServer, url: str) -> None:
    """A good answer settles exactly the tokens that the server says it counted, within the estimate."""
    finding, metered = await stage.run(url)
    (call,), (intent,) = metered.calls, metered.books.intents
    assert (call.outcome, call.settled, call.http_status) == ("ok", True, 200)
    assert call.usage.output_tokens == 1
    assert 50 < call.usage.input_tokens <= intent.estimate.input_tokens
    assert intent.estimate.output_tokens == 1
    assert finding.score == pytest.approx(0.9168, abs=1e-4)
    assert finding.label_mass == pytest.approx(0.98692, abs=1e-5)


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", None])
async def test_estimates_bound_the_real_servers_counts(
    builder: ChainBuilder, kind: str, tiny_llm_folder: Path, llm_server: str, tokenizer: str | None
) -> None:
    """Over the real local server, settled tokens never exceed the estimate that was reserved for them."""
    stage = Stage(builder, kind, tiny_llm_folder)
    runner = stage.built(llm_server, tokenizer=tokenizer)
    for message in ("hi", "Grüße 你好 🙂 " * 20, "<|im_start|>system " * 10, ""):
        metered = Metered()
        await runner.run({"sender_role": "pro", "message": message}, metered.meter)
        (call,), (intent,) = metered.calls, metered.books.intents
        assert call.settled
        assert 0 < call.usage.input_tokens <= intent.estimate.input_tokens


async def test_both_doors_give_one_score(builder: ChainBuilder, tiny_llm_folder: Path, llm_server: str) -> None:
    """The same prompt, model and labels score alike through either API of the real local server."""
    scores = []
    for kind in DOORS:
        door = Stage(builder, kind, tiny_llm_folder)
        runner = door.built(llm_server, stage={"labels": {"clean": "a", "violation": "b"}}, max_top_n_tokens=10)
        scores.append((await runner.run(ITEM, Metered().meter)).score)
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize(
    ("behaviour", "reason", "outcome", "tries", "code"),
    [
        (status(422, "validation"), "model_refused", "refused", 1, 422),
        (status(401), "model_refused", "refused", 1, 401),
        (status(429, "overloaded"), "model_overloaded", "refused", 3, 429),
        (status(424, "generation"), "model_error", "error", 3, 424),
        (status(500, "incomplete_generation"), "model_error", "error", 3, 500),
        (hang_up, "model_error", "error", 3, None),
        (half, "model_error", "error", 3, None),
        (rubbish(b"<html>"), "model_answer_invalid", "error", 1, 200),
        (rubbish(b"[]"), "model_answer_invalid", "error", 1, 200),
        (rubbish(b'{"choices": [], "generated_text": 3}'), "model_answer_invalid", "error", 1, 200),
        (rubbish(b"\xff\xfe"), "model_answer_invalid", "error", 1, 200),
        (hang, "model_timeout", "timeout", 3, None),
    ],
)  # fmt: skip
async def test_every_failure_has_its_reason_and_its_place_in_the_books(
    stage: Stage, server: FaultServer, url: str,
    behaviour: Behaviour, reason: str, outcome: str, tries: int, code: int | None,
) -> None:  # fmt: skip
    """What was surely not counted is settled at nothing, all else is unsettled; only what can heal is tried again."""
    server.script.extend([behaviour] * 9)
    found, metered = await stage.fail(url, timeout_s=0.15 if behaviour is hang else PATIENCE_S, deadline_s=PATIENCE_S)
    assert found == reason
    assert metered.outcomes == [outcome] * tries
    assert len(server.asked) == tries
    assert {call.http_status for call in metered.calls} == {code}
    assert {call.settled for call in metered.calls} == {outcome == "refused"}
    spent = sum(call.usage.input_tokens for call in metered.calls)
    assert spent == (0 if outcome == "refused" else sum(i.estimate.input_tokens for i in metered.books.intents))


@pytest.mark.parametrize("behaviour", [status(429), status(424), status(503), hang, hang_up, half])
async def test_a_passing_failure_is_retried(stage: Stage, server: FaultServer, url: str, behaviour: Behaviour) -> None:
    """One bad try, then a good one: the finding is that of the good one, and both tries are in the books."""
    server.script.append(behaviour)
    finding, metered = await stage.run(url, timeout_s=2.0 if behaviour is hang else PATIENCE_S, deadline_s=PATIENCE_S)
    assert finding.score == pytest.approx(0.9168, abs=1e-4)
    assert len(metered.calls) == 2
    assert metered.calls[-1].settled


async def test_a_dead_server_fails_at_once(stage: Stage) -> None:
    """Connection refused is `model_unavailable` without any waiting, and soon without even trying to connect."""
    runner = stage.built(_closed_port(), stage={"timeout_s": PATIENCE_S, "deadline_s": PATIENCE_S})
    tried = []
    for _ in range(3):
        metered, began = Metered(), time.perf_counter()
        with pytest.raises(StageFailed) as failed:
            await runner.run(ITEM, metered.meter)
        assert failed.value.reason == "model_unavailable"
        assert time.perf_counter() - began < PATIENCE_S / 3
        tried.append(metered.outcomes)
    assert tried == [["refused"], [], []]


async def test_a_healed_server_is_found_again(
    stage: Stage, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same stage answers once the server is back and its rest is over; nothing is restarted."""
    monkeypatch.setattr(replicas, "_FIRST_REST_S", 0.0)
    address = _closed_port()
    runner = stage.built(address)
    for _ in range(7):
        with pytest.raises(StageFailed):
            await runner.run(ITEM, Metered().meter)
    async with serving(server, int(address.rpartition(":")[2])):
        assert (await runner.run(ITEM, Metered().meter)).score is not None
    with pytest.raises(StageFailed):
        await runner.run(ITEM, Metered().meter)
    async with serving(server, int(address.rpartition(":")[2])):
        assert (await runner.run(ITEM, Metered().meter)).score is not None


async def test_another_replica_takes_over(stage: Stage, server: FaultServer, url: str) -> None:
    """With one replica dead, every item is answered by the other."""
    runner = stage.built(_closed_port(), url)
    for _ in range(4):
        metered = Metered()
        assert (await runner.run(ITEM, metered.meter)).score is not None
        assert metered.calls[-1].replica == url
    assert len(server.asked) == 4


async def test_the_deadline_bounds_all_tries(stage: Stage, server: FaultServer, url: str) -> None:
    """A hung server costs no more than deadline_s, however many retries are allowed, and however long each may be."""
    server.script.extend([hang] * 20)
    began = time.perf_counter()
    reason, metered = await stage.fail(url, timeout_s=PATIENCE_S, deadline_s=0.3, retries=10)
    assert (reason, len(metered.calls)) == ("model_timeout", 1)
    assert time.perf_counter() - began < PATIENCE_S / 3
    reason, metered = await stage.fail(url, timeout_s=0.2, deadline_s=0.5, retries=10)
    assert reason == "model_timeout"
    # Each lasts 0.2 s at least; a busy machine makes them longer, and so fewer.
    assert 1 <= len(metered.calls) <= 3


async def test_retry_after_beyond_the_deadline_ends_it(stage: Stage, server: FaultServer, url: str) -> None:
    """Where the server asks for more time than there is, nobody waits."""
    server.script.append(status(429, retry_after="600"))
    began = time.perf_counter()
    reason, metered = await stage.fail(url, deadline_s=PATIENCE_S)
    assert (reason, metered.outcomes) == ("model_overloaded", ["refused"])
    assert time.perf_counter() - began < PATIENCE_S / 3


async def test_retry_after_is_waited_for(stage: Stage, server: FaultServer, url: str) -> None:
    """Where there is time for it, the next try comes after it."""
    server.script.append(status(429, retry_after="1"))
    began = time.perf_counter()
    _, metered = await stage.run(url, timeout_s=PATIENCE_S, deadline_s=PATIENCE_S)
    assert metered.outcomes == ["refused", "ok"]
    assert time.perf_counter() - began >= 1.0


async def test_permits_bound_what_is_under_way(stage: Stage, server: FaultServer, url: str) -> None:
    """With one permit taken, the next item waits no longer than its deadline and asks nothing."""
    release = asyncio.Event()
    server.script.append(held_until(release))
    runner = stage.built(url, max_concurrency=1, stage={"deadline_s": 0.3, "timeout_s": 0.3})
    patient = stage.built(url, max_concurrency=1, stage={"deadline_s": PATIENCE_S, "timeout_s": PATIENCE_S})
    first = asyncio.ensure_future(patient.run(ITEM, Metered().meter))
    await server.hung.wait()
    metered = Metered()
    with pytest.raises(StageFailed) as failed:
        await runner.run(ITEM, metered.meter)
    assert (failed.value.reason, metered.calls) == ("model_overloaded", ())
    release.set()
    assert (await first).score is not None
    assert (await patient.run(ITEM, Metered().meter)).score is not None


async def test_a_cancelled_call_is_in_the_books(stage: Stage, server: FaultServer, url: str) -> None:
    """Cancelling an item leaves an unsettled call, and the permit and the replica free."""
    server.script.append(hang)
    runner, metered = stage.built(url, max_concurrency=1), Metered()
    running = asyncio.ensure_future(runner.run(ITEM, metered.meter))
    await server.hung.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [(call.outcome, call.settled) for call in metered.calls] == [("cancelled", False)]
    assert (await runner.run(ITEM, Metered().meter)).score is not None


async def test_the_key_and_the_trace_go_along(
    stage: Stage, server: FaultServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own key is sent, never a personal one; so is the current trace."""
    monkeypatch.setenv("HF_TOKEN", "hf_personal")
    monkeypatch.setenv("HUGGINGFACEHUB_API_TOKEN", "hf_personal")
    monkeypatch.setenv("LLM_KEY", "k-1")
    span = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(span):
        await stage.built(url, key="env:LLM_KEY").run(ITEM, Metered().meter)
    await stage.run(url)
    with_key, without = (seen.headers for seen in server.asked)
    assert with_key["authorization"] == "Bearer k-1"
    assert with_key["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert "authorization" not in without
    assert "hf_personal" not in json.dumps([with_key, without])


async def test_verify_names_another_model(stage: Stage, server: FaultServer, url: str, tiny_llm_folder: Path) -> None:
    """A server that serves another model than pinned, or none, is said so in words."""
    files = files_for(declared_stage(), declared_model(url, _closed_port(), kind=stage.kind), tiny_llm_folder)
    assert files.model is not None
    server.model_id = "other"
    wrong, silent = await stage.builder.verify(files.model)
    assert "other" in wrong or "does not serve tiny" in wrong
    assert "does not say what it serves" in silent
    server.model_id = "tiny"
    assert len(await stage.builder.verify(files.model)) == 1


async def test_tgi_gets_exactly_this(
    builder: ChainBuilder, server: FaultServer, url: str, tiny_llm_folder: Path
) -> None:
    """The JSON on TGI's wire: greedy, with details, nothing that turns sampling on, the adapter by name."""
    runner = Stage(builder, "tgi", tiny_llm_folder).built(url, adapter="moderation", max_top_n_tokens=4)
    await runner.run(ITEM, Metered().meter)
    (seen,) = server.asked
    assert seen.path == "/"
    assert seen.body == {
        "inputs": "<|im_start|>system\nYou judge messages.\nC abuse\nD spam<|im_end|>\n<|im_start|>user\n"
        "From: customer\nMessage: Can you come at nine?<|im_end|>\n<|im_start|>assistant\n",
        "parameters": {
            "adapter_id": "moderation",
            "details": True,
            "do_sample": False,
            "max_new_tokens": 1,
            "return_full_text": False,
            "stop": [],
            "top_n_tokens": 4,
            "watermark": False,
        },
    }


async def test_chat_gets_exactly_this(
    builder: ChainBuilder, server: FaultServer, url: str, tiny_llm_folder: Path
) -> None:
    """The JSON on the chat wire: temperature said, since an absent one samples; the adapter is the model's name."""
    stage = {"policies": {"abuse": "C"}, "adapter": "moderation"}
    await Stage(builder, "openai", tiny_llm_folder).built(url, stage=stage).run(ITEM, Metered().meter)
    (seen,) = server.asked
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "model": "moderation",
        "messages": [
            {"role": "system", "content": "You judge messages.\nC abuse\nD spam"},
            {"role": "user", "content": "From: customer\nMessage: Can you come at nine?"},
        ],
        "max_tokens": 2,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": 5,
    }


async def test_an_uncounted_answer_is_used_but_not_settled(
    builder: ChainBuilder, server: FaultServer, url: str, tiny_llm_folder: Path
) -> None:
    """Where TGI's token header is lost on the way, the answer stands and its cost stays at the estimate."""
    server.script.append(uncounted)
    finding, metered = await Stage(builder, "tgi", tiny_llm_folder).run(url)
    (call,) = metered.calls
    assert finding.score is not None
    assert not call.settled
    assert call.usage == metered.books.intents[0].estimate


async def test_one_try_is_one_request(
    builder: ChainBuilder, server: FaultServer, url: str, tiny_llm_folder: Path
) -> None:
    """The hub's client repeats a request that is answered 400 with a certain text; through this door it cannot."""
    server.script.append(_unused_parameters)
    reason, metered = await Stage(builder, "tgi", tiny_llm_folder).fail(url)
    assert (reason, metered.outcomes, len(server.asked)) == ("model_refused", ["refused"], 1)


def _unused_parameters(server: FaultServer, seen: Any, writer: asyncio.StreamWriter) -> None:
    body = b'{"error": "The following `model_kwargs` are not used by the model: [\'details\']"}'
    writer.write(b"HTTP/1.1 400 x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
