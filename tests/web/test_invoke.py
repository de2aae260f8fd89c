"""invoke, batch and stream, over a real socket."""

import json
import re

import pytest
from in_memory import QUOTA

from gateway.core.errors import Overloaded
from gateway.web.doors import WebSettings

INVOKE = "/tasks/message-moderation/invoke"
BATCH = "/tasks/message-moderation/batch"
STREAM = "/tasks/message-moderation/stream"


def item(message: str) -> dict[str, str]:
    """An input of the moderation task."""
    return {"message": message, "sender_role": "customer"}


async def test_an_answer_has_the_members_of_the_contract(served):
    """Output and metadata have exactly the members that the contract lists."""
    answer = (await served.client.post(INVOKE, json={"input": item("spam now")})).json()
    assert answer["output"]["label"] == "violation"
    metadata = answer["metadata"]
    assert set(metadata) == {
        "run_id", "status", "action", "label", "score", "stage", "attempts", "cached", "fingerprint", "usage",
        "review_id", "reason", "trace_id",
    }  # fmt: skip
    assert metadata["usage"] == {"input_tokens": 0, "output_tokens": 0, "cost": "0.000000000"}
    assert (metadata["status"], metadata["action"], metadata["stage"]) == ("accepted", "review", "rules")
    assert metadata["attempts"][0]["matched"] == ["spam"]


async def test_every_answer_carries_the_headers_of_the_contract(served):
    """Ids, rate limits, stage, cache, cost and overhead are in the headers, and nothing may be stored."""
    headers = (await served.client.post(INVOKE, json={"input": item("hello")})).headers
    assert headers["x-gateway-stage"] == "rules"
    assert headers["x-gateway-cache"] == "miss"
    assert headers["x-gateway-cost"] == "0.000000000"
    assert float(headers["x-gateway-overhead-ms"]) > 0
    assert headers["x-ratelimit-limit-requests"] == "600"
    assert headers["x-ratelimit-remaining-requests"] == "599"
    assert headers["x-ratelimit-reset-requests"] == "1"
    assert headers["cache-control"] == "no-store"
    assert headers["x-request-id"]


async def test_an_incoming_trace_and_request_id_are_continued(served):
    """A well-formed traceparent keeps its trace id and gets our own span; so does the request id."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    sent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "x-request-id": "order-7:1"}
    response = await served.client.post(INVOKE, json={"input": item("hello")}, headers=sent)
    assert response.headers["x-request-id"] == "order-7:1"
    assert re.fullmatch(rf"00-{trace}-(?!00f067aa0ba902b7)[0-9a-f]{{16}}-01", response.headers["traceparent"])
    assert response.json()["metadata"]["trace_id"] == trace


@pytest.mark.parametrize(
    "bad", ["00-" + "0" * 32 + "-00f067aa0ba902b7-01", "rubbish", "ff-" + "a" * 32 + "-" + "b" * 16]
)
async def test_a_malformed_trace_is_replaced(served, bad):
    """An invalid traceparent, or a request id with odd characters, is not passed on."""
    sent = {"traceparent": bad, "x-request-id": "a b"}
    response = await served.client.post(INVOKE, json={"input": item("hello")}, headers=sent)
    assert bad.split("-")[1 if "-" in bad else 0] not in response.headers["traceparent"]
    assert response.headers["x-request-id"] != "a b"


async def test_an_undecided_item_is_answered_with_its_action(served):
    """A task with actions answers 200 also where every stage failed, with the action of `deferred` and the reason."""
    response = await served.client.post(INVOKE, json={"input": item("break it")})
    metadata = response.json()["metadata"]
    assert response.status_code == 200
    assert response.json()["output"] is None
    assert (metadata["status"], metadata["action"], metadata["reason"]) == ("deferred", "review", "model_timeout")
    assert "x-gateway-stage" not in response.headers


async def test_a_task_without_actions_answers_502(served):
    """Where nobody can answer and no action is declared, the caller gets cascade_exhausted with the run's id."""
    response = await served.client.post("/tasks/request-routing/invoke", json={"input": {"text": "break it"}})
    assert (response.status_code, response.json()["code"]) == (502, "cascade_exhausted")
    assert response.json()["source"] == "upstream"
    assert response.json()["run_id"] in served.memory.ledger.inferences


async def test_what_is_said_of_an_item_reaches_the_ledger(served):
    """The request's metadata and the config's both attribute; the request's goes first; tags are joined."""
    body = {
        "input": item("hello"),
        "metadata": {"item_id": "m-1", "tags": ["a"]},
        "config": {"tags": ["b", "a"], "metadata": {"item_id": "other", "thread_id": "t-1", "free": [1]}},
    }
    run_id = (await served.client.post(INVOKE, json=body)).json()["metadata"]["run_id"]
    said = served.memory.ledger.inferences[run_id].invocation.attribution
    assert (said.item_id, said.thread_id, said.subject_id, said.tags) == ("m-1", "t-1", None, ("a", "b"))


async def test_headers_become_wishes(served):
    """Idempotency-Key and Cache-Control reach the engine."""
    sent = {"idempotency-key": "abc-1", "cache-control": "No-Cache, no-store"}
    response = await served.client.post(INVOKE, json={"input": item("hello")}, headers=sent)
    asked = served.memory.ledger.inferences[response.json()["metadata"]["run_id"]].invocation
    assert (asked.idempotency_key, asked.no_cache, asked.no_store) == ("abc-1", True, True)


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
async def test_an_idempotency_key_is_visible_ascii(served, key):
    """Anything but 1 to 255 visible ASCII characters is refused."""
    response = await served.client.post(INVOKE, json={"input": item("hello")}, headers={"idempotency-key": key})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")


async def test_the_owner_pays_where_the_task_says_so(served):
    """`payer = "owner"` bills the owner team, otherwise the caller pays."""
    for path, value, payer in (
        (INVOKE, item("hello"), "market"),
        ("/tasks/request-routing/invoke", {"text": "x"}, "trust"),
    ):
        response = await served.client.post(path, json={"input": value})
        run = served.memory.ledger.inferences[response.json()["metadata"]["run_id"]]
        assert run.invocation.payer_team == payer


async def test_a_batch_keeps_order_and_errors_apart(served):
    """Each input is an inference of its own; one that fails has its problem inside, and the rest their answers."""
    inputs = [item("spam a"), {"message": 1}, "text", item("hello"), item("break it")]
    response = await served.client.post(BATCH, json={"inputs": inputs, "config": {}, "kwargs": {}})
    answer = response.json()
    responses = answer["metadata"]["responses"]
    assert response.status_code == 200
    assert [o and o["label"] for o in answer["output"]] == ["violation", None, None, "clean", None]
    assert [r["status"] for r in responses] == ["accepted", "failed", "failed", "accepted", "deferred"]
    assert answer["metadata"]["run_ids"] == [r["run_id"] for r in responses]
    assert [r.get("error", {}).get("code") for r in responses] == [None, "invalid_input", "invalid_input", None, None]
    assert len({r["run_id"] for r in responses} - {None}) == 3


async def test_a_batch_that_the_quota_stops_says_so_per_input(served):
    """A refusal is that of the input, with its own code, and the envelope still answers 200."""
    served.memory.store.refuse = QUOTA
    try:
        response = await served.client.post(BATCH, json={"inputs": [item("hello")] * 3})
    finally:
        served.memory.store.refuse = None
    assert response.status_code == 200
    assert {r["error"]["code"] for r in response.json()["metadata"]["responses"]} == {"quota_exceeded"}


async def test_each_input_of_a_batch_claims_its_own_key(served):
    """An Idempotency-Key on a batch is told apart by the position of the input."""
    response = await served.client.post(
        BATCH, json={"inputs": [item("a"), item("b")]}, headers={"idempotency-key": "k"}
    )
    asked = [served.memory.ledger.inferences[run_id].invocation for run_id in response.json()["metadata"]["run_ids"]]
    assert [a.idempotency_key for a in asked] == ["k#0", "k#1"]


async def test_a_batch_takes_one_config_for_all_or_one_each(served):
    """Lists of config and metadata go by position; a list of another length is refused."""
    inputs = [item("a"), item("b")]
    body = {"inputs": inputs, "config": [{"tags": ["x"]}, {}], "metadata": {"thread_id": "t"}}
    response = await served.client.post(BATCH, json=body)
    said = [
        served.memory.ledger.inferences[run_id].invocation.attribution
        for run_id in response.json()["metadata"]["run_ids"]
    ]
    assert [(a.tags, a.thread_id) for a in said] == [(("x",), "t"), ((), "t")]
    response = await served.client.post(BATCH, json={"inputs": inputs, "config": [{}]})
    assert response.json()["errors"][0]["path"] == "$.config"


async def test_an_empty_batch_is_an_empty_answer(served):
    """No inputs, no inferences."""
    answer = (await served.client.post(BATCH, json={"inputs": []})).json()
    assert answer == {"output": [], "metadata": {"run_ids": [], "responses": []}}


async def test_a_batch_has_a_largest_size(serve):
    """One input more than the setting allows is refused as a whole."""
    async with serve(WebSettings(batch_max=3)) as served:
        assert (await served.client.post(BATCH, json={"inputs": [item("a")] * 3})).status_code == 200
        refused = await served.client.post(BATCH, json={"inputs": [item("a")] * 4})
        assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "$.inputs")


async def test_a_stream_is_metadata_data_end(served):
    """Three events in that order; data is the whole output."""
    response = await served.client.post(STREAM, json={"input": item("spam x")})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\n") for block in response.text.strip("\n").split("\n\n")]
    assert [event[0] for event in events] == ["event: metadata", "event: data", "event: end"]
    assert json.loads(events[0][1].removeprefix("data: "))["run_id"]
    assert json.loads(events[1][1].removeprefix("data: "))["label"] == "violation"


async def test_a_stream_that_cannot_begin_is_a_problem(served):
    """What fails before the first event is answered with its status, not inside a stream."""
    response = await served.client.post(STREAM, json={"input": {}})
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [(QUOTA, 429, "3"), (Overloaded("The gateway is at its limit.", retry_after_s=1), 503, "1")],
)
async def test_a_refusal_says_when_to_come_back(served, error, status, retry_after):
    """Refusals before the start carry retry-after in whole seconds, rounded up, and say that they are retryable."""
    served.memory.store.refuse = error
    try:
        response = await served.client.post(INVOKE, json={"input": item("hello")})
    finally:
        served.memory.store.refuse = None
    assert (response.status_code, response.headers["retry-after"]) == (status, retry_after)
    assert response.json()["retryable"] is True
