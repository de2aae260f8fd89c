"""Answers that are heard while they are made, over a real socket, and what becomes of them when nobody listens."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from in_memory import replying
from langserve import RemoteRunnable
from served import Served, serving

from gateway.core.cascade import Finding, StageFailed
from gateway.core.meter import Meter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Speaking:
    """Says its request word by word. Before `wait` it waits for the gate, at `break` it fails, at `bug` it breaks."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        said = ""
        for word in str(item["request"]).split():
            if word == "wait":
                await self.gate.wait()
            if word == "break":
                raise StageFailed("model_error")
            said += f"{word} "
            if meter.invocation.listener is not None:
                meter.invocation.listener({"reply": f"{word} "})
        return Finding(output={"reply": said})


@pytest.fixture
def speaking() -> Speaking:
    return Speaking()


@pytest.fixture
async def served(speaking: Speaking) -> AsyncIterator[Served]:
    async with serving(tasks=[replying(speaking)]) as running:
        yield running


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """(name, value) of each event as it comes."""
    name = ""
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key in ("data", "data:"):
            yield name, json.loads(value) if value else None


def streaming(served: Served, request: str, **headers: str) -> Any:
    return served.client.stream("POST", "/tasks/reply/stream", json={"input": {"request": request}}, headers=headers)


async def test_a_text_comes_piece_by_piece(served: Served, speaking: Speaking) -> None:
    """A piece is there before the next one is made; the last metadata is the whole of the run."""
    async with streaming(served, "Hello wait there") as response:
        heard = events(response)
        name, begun = await anext(heard)
        assert (name, (await anext(heard))[1]) == ("metadata", {"reply": "Hello "})
        speaking.gate.set()
        rest = [event async for event in heard]
    assert [name for name, _ in rest] == ["data", "data", "metadata", "end"]
    whole = rest[-2][1]
    assert (whole["run_id"], whole["status"], whole["stage"]) == (begun["run_id"], "accepted", "llm")
    assert served.memory.ledger.inferences[begun["run_id"]].decision.output == {"reply": "Hello wait there "}


async def test_who_leaves_in_the_middle_stops_nothing(served: Served, speaking: Speaking) -> None:
    """The run goes on to its end and is recorded whole."""
    async with streaming(served, "Hello wait there") as response:
        _, begun = await anext(events(response))
    assert not served.memory.ledger.inferences
    speaking.gate.set()
    async with asyncio.timeout(60):
        while begun["run_id"] not in served.memory.ledger.inferences:
            await served.client.get("/health/live")
    recorded = served.memory.ledger.inferences[begun["run_id"]]
    assert (recorded.decision.status, recorded.decision.output) == ("accepted", {"reply": "Hello wait there "})


async def test_a_stage_that_breaks_off_ends_in_an_error_event(served: Served) -> None:
    """After the first piece the status has been sent: the problem comes as the last event, and the run is recorded."""
    async with streaming(served, "Hello break") as response:
        assert response.status_code == 200
        *_, (name, problem) = [event async for event in events(response)]
    assert (name, problem["status_code"], problem["code"]) == ("error", 502, "cascade_exhausted")
    assert served.memory.ledger.inferences[problem["run_id"]].decision.reason == "model_error"


async def test_an_error_before_the_first_piece_is_a_problem_document(served: Served) -> None:
    """With its status, as from invoke."""
    async with streaming(served, "break") as response:
        assert response.status_code == 502
        assert response.headers["content-type"] == "application/problem+json"


async def test_the_same_question_at_once_is_answered_once(served: Served, speaking: Speaking) -> None:
    """Who joins a run under way hears nothing of it until its end, and then the whole."""
    async with streaming(served, "Hello wait") as first:
        heard = events(first)
        await anext(heard)
        joining = asyncio.create_task(
            served.client.post("/tasks/reply/stream", json={"input": {"request": "Hello wait"}})
        )
        while len(served.memory.store.admitted) < 2:
            await served.client.get("/health/live")
        speaking.gate.set()
        assert [name async for name, _ in heard][-1] == "end"
    text = (await joining).text
    assert text.count("event: data") == 1
    assert '"reply":"Hello wait "' in text


async def test_langchains_client_adds_the_pieces_up(served: Served) -> None:
    """`astream` yields the pieces, whose sum is what `ainvoke` returns; an error event is an exception."""
    headers = {"authorization": f"Bearer {served.memory.tokens['market']}"}
    remote = RemoteRunnable(f"{served.url}/tasks/reply/", headers=headers, timeout=20)
    chunks = [chunk async for chunk in remote.astream({"request": "We come at nine"})]
    assert len(chunks) == 4
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert dict(total) == await remote.ainvoke({"request": "We come at nine"}) == {"reply": "We come at nine "}
    with pytest.raises(httpx.HTTPStatusError):
        async for _ in remote.astream({"request": "Hello break"}):
            pass
