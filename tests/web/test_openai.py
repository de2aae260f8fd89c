"""OpenAI's own SDK, unchanged, with a team key against the tasks."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import openai
import pytest
from in_memory import QUOTA, replying
from served import Served, serving

from gateway.core.cascade import Finding, StageFailed
from gateway.core.meter import Meter


class Speaking:
    """Says its request word by word; fails at `break`."""

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        said = ""
        for word in str(item["request"]).split():
            if word == "break":
                raise StageFailed("model_error")
            said += f"{word} "
            if meter.invocation.listener is not None:
                meter.invocation.listener({"reply": f"{word} "})
        return Finding(output={"reply": said})


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(tasks=[replying(Speaking())]) as running:
        yield running


@pytest.fixture
async def sdk(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    key = served.memory.tokens["market"]
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def said(text: str) -> Any:
    """A conversation that ends with this."""
    return [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "An earlier turn"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": text},
    ]


def moderated(message: str) -> Any:
    return said(json.dumps({"message": message, "sender_role": "pro"}))


async def test_a_text_task_answers_with_its_text(sdk: openai.AsyncOpenAI, served: Served) -> None:
    """The last user message is the input; the run is in the ledger like any other, under its own task."""
    answer = await sdk.chat.completions.create(model="task:reply", messages=said("We come"), temperature=0.7)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("We come ", "stop")
    assert answer.usage is not None
    recorded = served.memory.ledger.inferences[answer.id]
    assert (recorded.invocation.task, recorded.invocation.input) == ("reply", {"request": "We come"})
    assert recorded.invocation.caller.team == "market"
    assert answer.model_extra is not None
    assert answer.model_extra["taskgate"]["run_id"] == answer.id


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ("hello", {"action": "deliver", "label": "clean"}),
        ("break it", {"action": "review", "reason": "model_timeout"}),
    ],
)
async def test_any_other_task_answers_with_json(sdk: openai.AsyncOpenAI, message: str, content: dict[str, Any]) -> None:
    """The input is a JSON object; the content says what to do with the item, also where nobody could decide."""
    answer = await sdk.chat.completions.create(model="task:message-moderation", messages=moderated(message))
    assert json.loads(answer.choices[0].message.content or "") == content


@pytest.mark.parametrize(("model", "messages", "content"), [
    ("task:reply", said("We come at nine"), "We come at nine "),
    ("task:message-moderation", moderated("hello"), '{"action":"deliver","label":"clean"}'),
])  # fmt: skip
async def test_a_stream_ends_with_the_usage(sdk: openai.AsyncOpenAI, model: str, messages: Any, content: str) -> None:
    """Text comes in pieces, everything else whole; then the reason for the end, then the tokens if asked for."""
    stream = await sdk.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *pieces, stop, usage = chunks
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == content
    assert stop.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_that_breaks_off_is_an_error(sdk: openai.AsyncOpenAI) -> None:
    """After the first piece as an event, before it as a status: the SDK raises either way."""
    stream = await sdk.chat.completions.create(model="task:reply", messages=said("Well break"), stream=True)
    with pytest.raises(openai.APIError) as raised:
        [chunk async for chunk in stream]
    assert raised.value.code == "cascade_exhausted"
    with pytest.raises(openai.InternalServerError):
        await sdk.chat.completions.create(model="task:reply", messages=said("break"), stream=True)


@pytest.mark.parametrize(
    ("asked", "error", "code"),
    [
        ({"model": "task:nothing"}, openai.NotFoundError, "unknown_task"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "unknown_task"),
        ({"model": "task:message-moderation"}, openai.UnprocessableEntityError, "invalid_input"),
        ({"messages": [{"role": "system", "content": "x"}]}, openai.UnprocessableEntityError, "invalid_input"),
        ({"messages": []}, openai.UnprocessableEntityError, "invalid_input"),
        ({"messages": said('{"other": 1}')}, openai.UnprocessableEntityError, "invalid_input"),
        ({"n": 2}, openai.UnprocessableEntityError, "invalid_input"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.UnprocessableEntityError,
            "invalid_input",
        ),
    ],
)
async def test_errors_are_openais_objects(
    sdk: openai.AsyncOpenAI, served: Served, asked: dict[str, Any], error: type[openai.APIStatusError], code: str
) -> None:
    """The SDK raises the class of the status, with the gateway's code; nothing was started."""
    with pytest.raises(error) as raised:
        await sdk.chat.completions.create(**({"model": "task:reply", "messages": said("x")} | asked))
    assert raised.value.code == code
    assert not served.memory.ledger.inferences


async def test_the_gates_of_a_task_hold_here_too(sdk: openai.AsyncOpenAI, served: Served) -> None:
    """Keys, the callers of a task and its quotas: with retry-after where waiting helps."""
    wrong = sdk.with_options(api_key="gk_wrong")
    with pytest.raises(openai.AuthenticationError) as refused:
        await wrong.models.list()
    assert refused.value.code == "unauthenticated"
    other = sdk.with_options(api_key=served.memory.tokens["other"])
    with pytest.raises(openai.PermissionDeniedError):
        await other.chat.completions.create(model="task:request-routing", messages=said("x"))
    served.memory.store.refuse = QUOTA
    with pytest.raises(openai.RateLimitError) as limited:
        await sdk.chat.completions.create(model="task:reply", messages=said("x"))
    assert (limited.value.code, limited.value.response.headers["retry-after"]) == ("quota_exceeded", "3")


async def test_models_are_the_tasks_that_the_team_may_call(sdk: openai.AsyncOpenAI, served: Served) -> None:
    """Tasks that are offered to others are not listed."""
    assert [model.id async for model in sdk.models.list()] == [
        "task:message-moderation", "task:reply", "task:request-routing",
    ]  # fmt: skip
    other = sdk.with_options(api_key=served.memory.tokens["other"])
    assert [model.id async for model in other.models.list()] == ["task:message-moderation", "task:reply"]
