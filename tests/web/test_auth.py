"""Who may do what."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.clock import Clock
from gateway.core.keys import mint
from gateway.web.auth import REMEMBER_S, Keyring
from gateway.web.limits import FailureThrottle

INVOKE = "/tasks/message-moderation/invoke"
BODY = {"input": {"message": "hello", "sender_role": "pro"}}


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.clock = Clock(new_id=lambda: "id", monotonic_s=lambda: self.now_s)


def stripped(problem: dict[str, object]) -> dict[str, object]:
    """A problem without the request's own id."""
    return {name: value for name, value in problem.items() if name != "request_id"}


async def test_every_bad_key_gets_the_same_answer(serve):
    """No key, a malformed, an unknown, a wrong, an expired and a revoked one cannot be told apart."""
    async with serve() as served:
        good = served.memory.tokens["market"]
        expired = served.memory.key("market", "invoke", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        revoked = served.memory.key("market", "invoke")
        await served.memory.keys.revoke(revoked.split("_")[1], datetime.now(UTC))
        _, unknown = mint("market", frozenset({"invoke"}), datetime.now(UTC))
        wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
        answers = []
        for text in ("", "gk_short", "Bearer", unknown, wrong, expired, revoked):
            answers.append(
                await served.client.post(INVOKE, json=BODY, headers={"authorization": f"Bearer {text}".strip()})
            )
        answers.append(await served.client.post(INVOKE, json=BODY, headers={"authorization": f"Basic {good}"}))
        assert {answer.status_code for answer in answers} == {401}
        assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
        assert all(stripped(answer.json()) == stripped(answers[0].json()) for answer in answers)


async def test_a_key_may_come_as_x_api_key(served):
    """Both headers work; the scheme of Authorization is not case sensitive."""
    key = served.memory.tokens["market"]
    del served.client.headers["authorization"]
    try:
        assert (await served.client.post(INVOKE, json=BODY, headers={"x-api-key": key})).status_code == 200
        assert (
            await served.client.post(INVOKE, json=BODY, headers={"authorization": f"bearer {key}"})
        ).status_code == 200
    finally:
        served.client.headers["authorization"] = f"Bearer {key}"


async def test_the_key_is_checked_before_the_body(served):
    """A caller without a key learns nothing of its body, however wrong."""
    response = await served.client.post(INVOKE, content=b"{", headers={"authorization": "Bearer no"})
    assert response.status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "scopes", "status"),
    [
        ("POST", INVOKE, ("read", "review", "finance", "admin"), 403),
        ("GET", "/tasks", ("read",), 200),
        ("GET", "/tasks", ("finance", "admin"), 403),
        ("GET", "/usage", ("invoke",), 403),
        ("GET", "/keys", ("invoke", "read", "review", "finance"), 403),
        ("POST", "/teams", ("invoke", "read", "review", "finance"), 403),
    ],
)
async def test_a_key_does_what_its_scopes_say(served, method, path, scopes, status):
    """A missing scope is 403 and named; no scope implies another."""
    key = served.memory.key("market", *scopes)
    response = await served.client.request(method, path, json=BODY, headers=served.with_key(key))
    assert response.status_code == status
    if status == 403:
        assert response.json()["needs"]


async def test_a_task_answers_its_callers_only(served):
    """A team that the task does not name gets 403, for the verbs and for the pages; the owner always may."""
    for path in ("invoke", "batch", "stream"):
        response = await served.client.post(
            f"/tasks/request-routing/{path}", json={"input": {"text": "x"}}, headers=served.as_team("other")
        )
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert (await served.client.get("/tasks/request-routing", headers=served.as_team("other"))).status_code == 403
    assert (await served.client.get("/tasks/request-routing", headers=served.as_team("trust"))).status_code == 200


async def test_a_store_that_is_down_is_503(serve):
    """Without the key store nobody can be let in, and nobody is turned away for good."""
    async with serve() as served:
        served.memory.keys.down = True
        response = await served.client.post(INVOKE, json=BODY)
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert response.json()["retryable"] is True


async def test_guessing_is_slowed_down_and_good_keys_are_not(serve):
    """After a burst of failures an address is told to wait; a good key from there, seen before or not, goes on."""
    async with serve() as served:
        assert (await served.client.post(INVOKE, json=BODY)).status_code == 200
        # One more try a second is free, so there are more than a slow machine could make free.
        bad = [served.with_key(f"gk_{number:016x}_" + "A" * 43) for number in range(60)]
        answers = [await served.client.post(INVOKE, json=BODY, headers=headers) for headers in bad]
        assert {answer.status_code for answer in answers[:20]} == {401}
        assert answers[-1].status_code == 429
        assert answers[-1].headers["retry-after"] == "1"
        assert (await served.client.post(INVOKE, json=BODY)).status_code == 200
        assert (await served.client.post(INVOKE, json=BODY, headers=served.as_team("other"))).status_code == 200


async def test_guesses_that_come_together_are_counted_together(serve):
    """A crowd of bad keys has no more tries than they would have had one after the other."""
    async with serve() as served:
        bad = [served.with_key(f"gk_{number:016x}_" + "A" * 43) for number in range(60)]
        answers = await asyncio.gather(*(served.client.post(INVOKE, json=BODY, headers=headers) for headers in bad))
        assert {answer.status_code for answer in answers} == {401, 429}


async def test_a_key_is_looked_up_once_in_two_seconds(served):
    """What is known, good or bad, is asked of the store again only after two seconds."""
    hands, memory = Hands(), served.memory
    ring = Keyring(memory.keys, hands.clock)
    known = memory.tokens["market"].split("_")[1]
    before = memory.keys.lookups
    for key_id, exists in ((known, True), ("f" * 16, False)):
        for _ in range(3):
            assert (await ring.find(key_id) is not None) is exists
    assert memory.keys.lookups == before + 2
    hands.now_s += REMEMBER_S
    await ring.find(known)
    assert memory.keys.lookups == before + 3


async def test_what_the_keyring_remembers_is_bounded(served):
    """Ten thousand made-up keys leave no more than the bound behind."""
    ring = Keyring(served.memory.keys, Hands().clock)
    for number in range(5000):
        await ring.find(f"{number:016x}")
    assert len(ring._seen) <= 4096


def test_the_throttle_refills_and_is_bounded():
    """A bucket gives one more try a second, and the number of addresses remembered has an end."""
    hands = Hands()
    throttle = FailureThrottle(hands.clock, burst=2, per_s=1.0, addresses=3)
    for _ in range(2):
        assert throttle.wait_s("a") == 0
        throttle.failed("a")
    assert throttle.wait_s("a") == 1.0
    hands.now_s += 1.0
    assert throttle.wait_s("a") == 0
    for address in "bcdefg":
        throttle.failed(address)
    assert len(throttle._buckets) == 3
