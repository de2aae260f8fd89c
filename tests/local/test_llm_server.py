"""The local LLM server over real sockets: TGI's wire API, seen by plain HTTP and by the real Hugging Face client."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import huggingface_hub
import huggingface_hub.errors
import pytest
from huggingface_hub import AsyncInferenceClient

from gateway.core.prompts import Message, to_text
from gateway.local.child import free_port
from gateway.local.llm import Options, load, running

PROMPT = "<|im_start|>user\nCan you fix my door?<|im_end|>\n<|im_start|>assistant\n"
ONE_TOKEN = {"max_new_tokens": 1, "do_sample": False, "details": True, "top_n_tokens": 5}


@pytest.fixture
async def http(llm_server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=llm_server, timeout=30) as client:
        yield client


@pytest.fixture
def small_server(tiny_llm_folder: Path) -> Iterator[str]:
    """A server of its own, for counts and limits: two requests at once, unknown adapters refused."""
    options = Options(dtype="float32", threads=1, max_concurrent_requests=2, unknown_adapter="reject")
    with running(load(tiny_llm_folder, {}, options), "127.0.0.1", free_port()) as url:
        yield url


async def _generate(http: httpx.AsyncClient, inputs: str, **parameters: object) -> dict:
    answer = await http.post("/generate", json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _count(metrics: str, name: str) -> float:
    return next((float(line.split()[1]) for line in metrics.splitlines() if line.startswith(f"{name} ")), 0.0)


async def test_generate_details(http: httpx.AsyncClient) -> None:
    """One greedy token comes with its id, its log-prob and the top list, most likely first, the token itself on top."""
    details = (await _generate(http, PROMPT, **ONE_TOKEN))["details"]
    token, top = details["tokens"][0], details["top_tokens"][0]
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == 1
    assert details["seed"] is None
    assert top[0] == token | {"text": top[0]["text"]}
    assert len(top) >= 5
    assert [t["logprob"] for t in top] == sorted((t["logprob"] for t in top), reverse=True)


async def test_header_counts(http: httpx.AsyncClient) -> None:
    """Headers count the prompt's tokens as `/tokenize` does, and the generated ones."""
    pieces = (await http.post("/tokenize", json={"inputs": PROMPT})).json()
    answer = await http.post("/generate", json={"inputs": PROMPT, "parameters": {"max_new_tokens": 3, "seed": 1}})
    assert answer.headers["x-prompt-tokens"] == str(len(pieces))
    assert 1 <= int(answer.headers["x-generated-tokens"]) <= 3
    assert answer.headers["x-compute-type"] == "cpu"
    assert int(answer.headers["x-total-time"]) >= int(answer.headers["x-inference-time"]) >= 0


async def test_tokenize(http: httpx.AsyncClient) -> None:
    """Tokens carry their place in the text; special tokens of the chat format are one token."""
    pieces = (await http.post("/tokenize", json={"inputs": "<|im_start|>hé A"})).json()
    assert pieces[0] == {"id": 1, "text": "<|im_start|>", "start": 0, "stop": 12}
    assert pieces[-1]["text"] == "A"
    assert (pieces[-1]["start"], pieces[-1]["stop"]) == (15, 16)


async def test_info(http: httpx.AsyncClient) -> None:
    """`/info` pins the model by name and sha256, and names the adapters."""
    info = (await http.get("/info")).json()
    assert info["model_id"] == "tiny"
    assert len(info["model_sha"]) == 64
    assert info["model_dtype"] == "torch.float32"
    assert info["max_input_tokens"] < info["max_total_tokens"] == 2048
    assert set(info["adapters"]) == {"tiny"}
    assert (await http.get("/health")).status_code == 200


async def test_adapter(http: httpx.AsyncClient) -> None:
    """An adapter answers otherwise than the base model; an unknown one silently serves the base model, as TGI does."""
    base = await _generate(http, PROMPT, **ONE_TOKEN)
    tiny = await _generate(http, PROMPT, **ONE_TOKEN, adapter_id="tiny")
    unknown = await _generate(http, PROMPT, **ONE_TOKEN, adapter_id="nobody")
    assert tiny["details"]["tokens"][0]["logprob"] != pytest.approx(base["details"]["tokens"][0]["logprob"], abs=1e-3)
    assert unknown["details"]["tokens"][0]["logprob"] == pytest.approx(
        base["details"]["tokens"][0]["logprob"], abs=1e-4
    )


async def test_adapters_in_one_batch(http: httpx.AsyncClient) -> None:
    """Requests for several adapters at once, of different lengths, answer as each does alone."""
    asked = [("x" * n + PROMPT, adapter) for n, adapter in enumerate(["tiny", None, "tiny", None, None, "tiny"])]
    alone = [await _generate(http, text, **ONE_TOKEN, adapter_id=adapter) for text, adapter in asked]
    together = await asyncio.gather(*(_generate(http, text, **ONE_TOKEN, adapter_id=a) for text, a in asked))
    for one, other in zip(alone, together, strict=True):
        assert one["generated_text"] == other["generated_text"]
        assert one["details"]["tokens"][0]["logprob"] == pytest.approx(
            other["details"]["tokens"][0]["logprob"], abs=1e-4
        )


async def test_requests_join_and_leave(http: httpx.AsyncClient) -> None:
    """Answers of different length that overlap in time are the answers that each gives alone."""
    asked = [("y" * n + PROMPT, 3 + 5 * (n % 3)) for n in range(8)]
    alone = [await _generate(http, text, max_new_tokens=n, do_sample=False) for text, n in asked]
    together = await asyncio.gather(*(_generate(http, text, max_new_tokens=n, do_sample=False) for text, n in asked))
    assert together == alone


async def test_prefill_details(http: httpx.AsyncClient) -> None:
    """`decoder_input_details` gives every prompt token its log-prob, but the first."""
    details = (await _generate(http, "Hello", **ONE_TOKEN, decoder_input_details=True))["details"]
    assert [token["text"] for token in details["prefill"]] == list("Hello")
    assert details["prefill"][0]["logprob"] is None
    assert all(token["logprob"] < 0 for token in details["prefill"][1:])


async def test_sampling(http: httpx.AsyncClient) -> None:
    """A seed repeats its draw; temperature alone turns sampling on; top_k=1 is the greedy answer."""
    sampled = {"max_new_tokens": 12, "temperature": 1.5, "do_sample": False, "seed": 7, "details": True}
    first, second = await _generate(http, PROMPT, **sampled), await _generate(http, PROMPT, **sampled)
    other = await _generate(http, PROMPT, **sampled | {"seed": 8})
    greedy = await _generate(http, PROMPT, max_new_tokens=12, do_sample=False)
    only_best = await _generate(http, PROMPT, max_new_tokens=12, top_k=1)
    assert first == second
    assert first["details"]["seed"] == 7
    assert first["generated_text"] != other["generated_text"]
    assert only_best["generated_text"] == greedy["generated_text"]


async def test_logprobs_after_warpers(http: httpx.AsyncClient) -> None:
    """With top_p the top list shrinks to the tokens that remain, and their probabilities sum to one."""
    details = (await _generate(http, PROMPT, **ONE_TOKEN | {"top_p": 0.05, "seed": 1}))["details"]
    assert details["top_tokens"][0][0]["logprob"] == pytest.approx(0, abs=1e-4)
    assert len(details["top_tokens"][0]) == 1


async def test_stop_sequence(http: httpx.AsyncClient) -> None:
    """Generation ends with the first stop sequence, which stays in the text."""
    whole = (await _generate(http, "Q", max_new_tokens=30, do_sample=False))["generated_text"]
    stop = next(c for c in whole if c.isascii())
    answer = await _generate(http, "Q", max_new_tokens=30, do_sample=False, stop=[stop], details=True)
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["generated_text"].endswith(stop)
    assert answer["generated_text"].count(stop) == 1


async def test_end_of_sequence(http: httpx.AsyncClient) -> None:
    """The token that ends an answer is counted and listed, but is not in the text."""
    hot = {"max_new_tokens": 400, "temperature": 50.0, "details": True}
    answers = [await _generate(http, "Q", **hot, seed=seed) for seed in range(12)]
    ended = next(answer for answer in answers if answer["details"]["finish_reason"] == "eos_token")
    assert ended["details"]["tokens"][-1] == ended["details"]["tokens"][-1] | {"id": 2, "special": True}
    assert ended["details"]["generated_tokens"] == len(ended["details"]["tokens"]) < 400
    assert not ended["generated_text"].endswith("<|im_end|>")


async def test_return_full_text(http: httpx.AsyncClient) -> None:
    """`return_full_text` puts the prompt in front; `POST /` answers a list."""
    short = await _generate(http, PROMPT, max_new_tokens=2, do_sample=False)
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 2, "do_sample": False, "return_full_text": True}}
    answers = (await http.post("/", json=body)).json()
    assert answers == [{"generated_text": PROMPT + short["generated_text"]}]


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"typical_p": 0.0}, "typical_p"),
        ({"top_n_tokens": 11}, "top_n_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 100_000}, "max_new_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"best_of": 2}, "best_of"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar"),
        ({"watermark": True}, "watermark"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
    ],
)
async def test_bad_parameters(http: httpx.AsyncClient, parameters: dict, word: str) -> None:
    """A parameter out of bounds is a 422 of type `validation` that names it, on every door."""
    for route in ("/generate", "/generate_stream", "/"):
        answer = await http.post(route, json={"inputs": "hi", "parameters": parameters})
        assert answer.status_code == 422
        assert answer.json()["error_type"] == "validation"
        assert word in answer.json()["error"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"inputs": 3}', b'{"inputs": ""}', b"\xff", b'{"inputs": "\\ud800"}']
)
async def test_bad_bodies(http: httpx.AsyncClient, body: bytes) -> None:
    """What is no generation request is a 422 in TGI's error shape."""
    answer = await http.post("/generate", content=body)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "error_type"}


async def test_too_long(http: httpx.AsyncClient) -> None:
    """Inputs above the bound are refused, unless `truncate` cuts them on the left."""
    answer = await http.post("/generate", json={"inputs": "x" * 3000, "parameters": {"max_new_tokens": 1}})
    assert answer.status_code == 422
    cut = {"max_new_tokens": 1, "truncate": 7}
    answer = await http.post("/generate", json={"inputs": "x" * 3000, "parameters": cut})
    assert answer.headers["x-prompt-tokens"] == "7"


async def test_without_parameters_it_samples(http: httpx.AsyncClient) -> None:
    """A request without `parameters` samples, as TGI does: two answers differ."""
    answers = [(await http.post("/generate", json={"inputs": PROMPT})).json() for _ in range(2)]
    assert answers[0] != answers[1]


async def test_stream(http: httpx.AsyncClient) -> None:
    """Streamed tokens spell the whole answer; the last event has the text and the token counts."""
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 20, "do_sample": False, "top_n_tokens": 2}}
    text = (await http.post("/generate_stream", json=body)).text
    events = [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line]
    whole = await _generate(http, PROMPT, max_new_tokens=20, do_sample=False)
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert all(len(event["top_tokens"]) >= 2 for event in events)
    assert all(event["details"] is None for event in events[:-1])
    assert events[-1]["generated_text"] == whole["generated_text"]
    assert events[-1]["details"]["generated_tokens"] == len(events)
    assert events[-1]["details"]["input_length"] == len((await http.post("/tokenize", json={"inputs": PROMPT})).json())
    assert whole["generated_text"].startswith("".join(e["token"]["text"] for e in events if not e["token"]["special"]))


async def test_hugging_face_client(llm_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client gets details and log-probs, streams, and raises its own error classes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # The gateway's own door, where another test has made one, changes the client for the whole process.
    huggingface_hub.set_async_client_factory(lambda: httpx.AsyncClient(timeout=30))
    client = AsyncInferenceClient(model=llm_server)
    whole = await client.text_generation(PROMPT, details=True, top_n_tokens=3, max_new_tokens=6, adapter_id="tiny")
    assert whole.details is not None
    assert len(whole.details.top_tokens[0]) >= 3
    stream = await client.text_generation(PROMPT, details=True, stream=True, max_new_tokens=6, adapter_id="tiny")
    events = [event async for event in stream]
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details.input_length > 6
    assert await client.text_generation(PROMPT, max_new_tokens=6, adapter_id="tiny") == whole.generated_text
    with pytest.raises(huggingface_hub.errors.ValidationError):
        await client.text_generation(PROMPT, temperature=0)


async def test_chat_is_the_same_engine(http: httpx.AsyncClient) -> None:
    """A chat's first log-probs are those of `/generate` on the rendered prompt; `model` names the adapter."""
    prompt = to_text((Message("system", "Be {brief}."), Message("user", "Hi")), "chatml")
    messages = [{"role": "system", "content": "Be {brief}."}, {"role": "user", "content": "Hi"}]
    body = {"messages": messages, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    for model, adapter in (("tgi", None), ("tiny", "tiny"), ("dummy", None)):
        chat = (await http.post("/v1/chat/completions", json=body | {"model": model})).json()
        plain = (await _generate(http, prompt, **ONE_TOKEN, adapter_id=adapter))["details"]["top_tokens"][0]
        said = chat["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert [t["logprob"] for t in said] == pytest.approx([t["logprob"] for t in plain], abs=1e-4)
        assert chat["usage"]["prompt_tokens"] == len((await http.post("/tokenize", json={"inputs": prompt})).json())
        assert chat["usage"]["completion_tokens"] == 1


async def test_chat_temperature(http: httpx.AsyncClient) -> None:
    """In a chat temperature 0 is greedy, and absent samples."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12}
    greedy = [(await http.post("/v1/chat/completions", json=body | {"temperature": 0})).json() for _ in range(2)]
    free = [(await http.post("/v1/chat/completions", json=body)).json() for _ in range(2)]
    assert greedy[0]["choices"] == greedy[1]["choices"]
    assert free[0]["choices"] != free[1]["choices"]


async def test_chat_stream(http: httpx.AsyncClient) -> None:
    """A streamed chat ends with the usage, if asked for, and `[DONE]`."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0, "stream": True}
    text = (await http.post("/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}})).text
    lines = [line.removeprefix("data:") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == len(chunks) - 1
    assert chunks[-2]["choices"][0]["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize(
    "extra", [{"messages": []}, {"tools": [{}]}, {"top_logprobs": 3}, {"top_logprobs": 11, "logprobs": True}]
)
async def test_bad_chat(http: httpx.AsyncClient, extra: dict) -> None:
    """A chat that cannot be served is a 422."""
    answer = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]} | extra)
    assert answer.status_code == 422


async def test_counts_are_exact(small_server: str) -> None:
    """`/metrics` counts the prompts that were run and their tokens: not the refused, and each generated token once."""
    async with httpx.AsyncClient(base_url=small_server) as http:
        first = await http.post("/generate", json={"inputs": "Hello", "parameters": {"max_new_tokens": 3}})
        second = await http.post("/generate", json={"inputs": "Hello you", "parameters": {"max_new_tokens": 1}})
        await http.post("/generate", json={"inputs": "Hello", "parameters": {"temperature": 0}})
        await http.post("/generate", json={"inputs": "Hello", "parameters": {"adapter_id": "nobody"}})
        metrics = (await http.get("/metrics")).text
    generated = int(first.headers["x-generated-tokens"]) + int(second.headers["x-generated-tokens"])
    assert _count(metrics, "tgi_request_count") == _count(metrics, "tgi_request_input_length_count") == 2
    assert _count(metrics, "tgi_request_input_length_sum") == 5 + 9
    assert _count(metrics, "tgi_request_generated_tokens_sum") == generated
    assert _count(metrics, 'tgi_request_failure{err="validation"}') == 2


async def test_overload_and_leaving(small_server: str) -> None:
    """A request too many is refused at once with 429; a client that leaves frees its place and stops costing."""
    endless = {"inputs": "x", "parameters": {"max_new_tokens": 2000, "do_sample": False}}
    async with httpx.AsyncClient(base_url=small_server, timeout=30) as http, asyncio.timeout(60):
        async with (
            http.stream("POST", "/generate_stream", json=endless) as one,
            http.stream("POST", "/generate_stream", json=endless) as two,
        ):
            # Held on to: a line iterator that is collected closes its connection.
            lines = [one.aiter_lines(), two.aiter_lines()]
            await asyncio.gather(*(anext(each) for each in lines))
            refused = await http.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 1}})
            assert refused.status_code == 429
            assert refused.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        metrics = (await http.get("/metrics")).text
        while _count(metrics, 'tgi_request_failure{err="disconnected"}') < 2:
            metrics = (await http.get("/metrics")).text
        again = await http.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 1}})
        assert again.status_code == 200
        metrics = (await http.get("/metrics")).text
    assert _count(metrics, "tgi_request_count") == _count(metrics, "tgi_request_generated_tokens_count") == 3
    assert 3 <= _count(metrics, "tgi_request_generated_tokens_sum") < 4000
