"""Who may read /metrics, and what a trace's headers say."""

import httpx
from served import Serve

from gateway.web.doors import Telemetry


async def rendered() -> bytes:
    """What is measured."""
    return b"taskgate_requests_total 7\n"


async def test_open_metrics_need_no_key(serve: Serve) -> None:
    """A deployment may show them to everybody who can reach the port."""
    telemetry = Telemetry(metrics=rendered, metrics_open=True)
    async with serve(telemetry=telemetry) as served, httpx.AsyncClient(base_url=served.url) as stranger:
        response = await stranger.get("/metrics")
    assert (response.status_code, response.content) == (200, await rendered())
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_problems_are_told_by_their_code(serve: Serve) -> None:
    """Whatever error is answered, its code is counted, and nothing that a caller wrote."""
    codes: list[str] = []
    async with serve(telemetry=Telemetry(problem=codes.append)) as served:
        await served.client.get("/no-such-page")
        await served.client.post("/tasks/no-such-task/invoke", json={"input": {}})
        await served.client.post("/tasks/message-moderation/invoke", json={"input": {}})
    assert codes == ["not_found", "unknown_task", "invalid_input"]


async def test_the_decision_on_a_trace_is_told_to_the_caller(serve: Serve) -> None:
    """The flag of the answer's traceparent is what this gateway decided, whatever the caller's side did."""
    asked: list[bool | None] = []

    def never(_: str, parent: bool | None) -> bool:
        asked.append(parent)
        return False

    async with serve(telemetry=Telemetry(sampled=never)) as served:
        body = {"input": {"message": "ok", "sender_role": "pro"}}
        sent = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        with_parent = await served.client.post("/tasks/message-moderation/invoke", json=body, headers=sent)
        without = await served.client.post("/tasks/message-moderation/invoke", json=body)
    assert with_parent.headers["traceparent"].endswith("-00")
    assert without.headers["traceparent"].endswith("-00")
    assert asked[-2:] == [True, None]
