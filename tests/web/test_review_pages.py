"""The queue over HTTP: who may, who may not, and what each sees."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from in_memory import CLOCK
from served import Served, serving

from gateway.core.reviews import LEASES, Item

TEXT = {"message": "Write to jo@example.org or +49 170 5550142, card 4111 1111 1111 1111", "sender_role": "pro"}


@pytest.fixture
async def desk() -> AsyncIterator[Served]:
    """A gateway with an empty queue."""
    async with serving() as running:
        yield running


async def ask(served: Served) -> str:
    """A held item of the team `market` for a task that the team `trust` owns."""
    at, id_ = CLOCK.now(), CLOCK.new_id()
    item = Item(
        id=id_, kind="held", root_id=id_, task="message-moderation", caller_team="market", owner_team="trust",
        fingerprint="f" * 16, severity=2, score=0.9, recommended="block", created_at=at,
        due_at=at + timedelta(hours=1), rank_at=at,
    )  # fmt: skip
    await served.memory.reviews.put(item, CLOCK.new_id(), TEXT, None)
    return id_


def headers(served: Served, team: str, *scopes: str) -> dict[str, str]:
    """Those of a new key."""
    return served.with_key(served.memory.key(team, *scopes))


async def take(served: Served, by: dict[str, str]) -> dict[str, Any]:
    """The next item."""
    return dict((await served.client.post("/reviews/next", json={}, headers=by)).json()["next"])


async def test_a_reviewer_takes_decides_and_undoes(desk: Served) -> None:
    """One item from the queue to an outcome and back; the queue is empty meanwhile."""
    id_, by = await ask(desk), headers(desk, "trust", "review")
    case = await take(desk, by)
    assert case["review"]["id"] == id_
    assert (await desk.client.post("/reviews/next", json={}, headers=by)).json() == {"next": None}
    body = {"token": case["token"], "outcome": "block", "reason": "spam"}
    decided = (await desk.client.post(f"/reviews/{id_}/decide", json=body, headers=by)).json()
    assert (decided["state"], decided["decision"]["outcome"], decided["decision"]["agrees"]) == (
        "decided", "block", "right"
    )  # fmt: skip
    again = await desk.client.post(f"/reviews/{id_}/decide", json=body, headers=by)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    undone = (await desk.client.post(f"/reviews/{id_}/undo", headers=by)).json()
    assert (undone["state"], undone["decision"]) == ("open", None)


async def test_reviewers_see_the_kind_of_a_number_leads_the_number(desk: Served) -> None:
    """Addresses, phones and cards are masked for who is no lead; what remains is enough to judge."""
    id_ = await ask(desk)
    for scope, seen in (("review", "Write to [email] or [phone], card [card]"), ("lead", TEXT["message"])):
        found = await desk.client.get(f"/reviews/{id_}", headers=headers(desk, "trust", scope))
        assert found.json()["input"]["message"] == seen


async def test_judges_are_blind(desk: Served) -> None:
    """Of what kind an item is and what another said of it, only a lead is told."""
    id_, by = await ask(desk), headers(desk, "trust", "review")
    case = await take(desk, by)
    await desk.client.post(f"/reviews/{id_}/decide", json={"token": case["token"], "outcome": "deliver"}, headers=by)
    for scope, kind, outcome in (("review", None, None), ("lead", "held", "deliver")):
        (item,) = (await desk.client.get("/reviews", headers=headers(desk, "trust", scope))).json()["reviews"]
        assert (item["kind"], (item["decision"] or {}).get("outcome")) == (kind, outcome)
    refused = await desk.client.get(f"/reviews/{id_}/history", headers=by)
    assert refused.status_code == 403
    told = await desk.client.get(f"/reviews/{id_}/history", headers=headers(desk, "trust", "lead"))
    assert [event["event"] for event in told.json()["events"]] == ["leased", "decided"]


@pytest.mark.parametrize("path", ["", "/outcome", "/lease", "/renew", "/release", "/skip", "/decide", "/undo", "/gold"])
async def test_another_teams_review_is_not_there(desk: Served, path: str) -> None:
    """An id of another team's item is answered as one that does not exist, whatever is asked of it."""
    id_ = await ask(desk)
    by = headers(desk, "other", "review", "lead", "read")
    bodies: dict[str, Any] = {
        "/renew": {"token": "t"},
        "/release": {"token": "t"},
        "/skip": {"token": "t", "reason": "r"},
        "/decide": {"token": "t", "outcome": "deliver"},
    }
    method = "GET" if path in ("", "/outcome") else "POST"
    answer = await desk.client.request(method, f"/reviews/{id_}{path}", json=bodies.get(path), headers=by)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert (await desk.client.post("/reviews/next", json={}, headers=by)).json() == {"next": None}


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/reviews/next", "invoke"),
        ("GET", "/reviews", "read"),
        ("GET", "/reviews/depth", "invoke"),
        ("GET", "/reviews/x", "admin"),
        ("GET", "/reviews/x/history", "review"),
        ("POST", "/reviews/x/gold", "review"),
        ("POST", "/reviews/x/appeal", "review"),
        ("PUT", "/teams/market/webhook", "lead"),
        ("GET", "/teams/market/webhook", "review"),
        ("POST", "/teams/market/webhook/rotate", "lead"),
        ("DELETE", "/teams/market/webhook", "invoke"),
    ],
)
async def test_a_key_without_the_scope_is_refused(desk: Served, method: str, path: str, scope: str) -> None:
    """No scope implies another: neither an administrator's nor a caller's key reads or judges an item."""
    answer = await desk.client.request(method, path, json={}, headers=headers(desk, "trust", scope))
    assert answer.status_code == 403


async def test_escalated_items_are_for_leads(desk: Served) -> None:
    """A reviewer hands an item over; only a lead gets it back."""
    id_, by, lead = await ask(desk), headers(desk, "trust", "review"), headers(desk, "trust", "lead")
    case = await take(desk, by)
    body = {"token": case["token"], "outcome": "escalate", "note": "I know the sender."}
    assert (await desk.client.post(f"/reviews/{id_}/decide", json=body, headers=by)).json()["state"] == "escalated"
    assert (await desk.client.post("/reviews/next", json={"escalated": True}, headers=by)).status_code == 403
    assert (await desk.client.post("/reviews/next", json={}, headers=lead)).json()["next"] is None
    taken = (await desk.client.post("/reviews/next", json={"escalated": True}, headers=lead)).json()["next"]
    assert taken["review"]["id"] == id_


async def test_the_sender_sees_the_outcome_and_nothing_else(desk: Served) -> None:
    """The team that sent the item reads what became of it, not the item; it may appeal once it is settled."""
    id_, sender = await ask(desk), headers(desk, "market", "read", "invoke", "review")
    assert (await desk.client.get(f"/reviews/{id_}", headers=sender)).status_code == 404
    outcome = (await desk.client.get(f"/reviews/{id_}/outcome", headers=sender)).json()
    assert (outcome["state"], outcome["outcome"]) == ("open", None)
    appealed = await desk.client.post(f"/reviews/{id_}/appeal", json={"reason": "It is fine."}, headers=sender)
    assert appealed.status_code == 409


async def test_nobody_takes_the_whole_queue(desk: Served) -> None:
    """Whoever has as many items as one may have gives one back first: the others find something to judge."""
    for _ in range(LEASES + 1):
        await ask(desk)
    by = headers(desk, "trust", "review")
    cases = [await take(desk, by) for _ in range(LEASES)]
    more = await desk.client.post("/reviews/next", json={}, headers=by)
    left = next(id_ for id_, item in desk.memory.reviews.items.items() if item.state == "open")
    certain = await desk.client.post(f"/reviews/{left}/lease", headers=by)
    assert (more.status_code, certain.status_code) == (409, 409)
    assert (await take(desk, headers(desk, "trust", "review")))["review"]["id"] == left
    id_, token = cases[0]["review"]["id"], cases[0]["token"]
    await desk.client.post(f"/reviews/{id_}/release", json={"token": token}, headers=by)
    assert (await take(desk, by))["review"]["id"] == id_


async def test_a_reviewer_does_not_look_up_what_others_said(desk: Served) -> None:
    """A second opinion is blind also for a key that may read runs; a lead, and who sent the item, see the outcome."""
    id_, by = await ask(desk), headers(desk, "trust", "review", "read")
    for team, scopes, status in (
        ("trust", ("review", "read"), 403), ("trust", ("review", "lead", "read"), 200), ("market", ("read",), 200),
        ("other", ("read",), 404),
    ):  # fmt: skip
        answer = await desk.client.get(f"/reviews/{id_}/outcome", headers=headers(desk, team, *scopes))
        assert answer.status_code == status
    assert (await take(desk, by))["review"]["id"] == id_


@pytest.mark.parametrize("reason", ["", "call 0170 5550142", "Spam!", "x" * 65])
async def test_a_reason_is_a_word(desk: Served, reason: str) -> None:
    """It goes to the caller and stays in the events for ever, so it is no place for sentences or numbers."""
    id_, by = await ask(desk), headers(desk, "trust", "review")
    token = (await take(desk, by))["token"]
    for act, more in (("skip", {}), ("decide", {"outcome": "block"})):
        body = {"token": token, "reason": reason, **more}
        assert (await desk.client.post(f"/reviews/{id_}/{act}", json=body, headers=by)).status_code == 422


async def test_policies_are_those_of_the_task(desk: Served) -> None:
    """A decision names no policy that the task does not have."""
    id_, by = await ask(desk), headers(desk, "trust", "review")
    case = await take(desk, by)
    body = {"token": case["token"], "outcome": "block", "policies": ["manners"]}
    assert (await desk.client.post(f"/reviews/{id_}/decide", json=body, headers=by)).status_code == 422


@pytest.mark.parametrize("query", ["state=gone", "limit=0", "limit=x", "before=x"])
async def test_a_list_is_asked_for_properly(desk: Served, query: str) -> None:
    """An unknown state, a limit that is none, an id that is none: 422 with the place."""
    answer = await desk.client.get(f"/reviews?{query}", headers=headers(desk, "trust", "review"))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == query.split("=")[0]


async def test_a_webhook_is_set_by_administrators_and_its_secret_shown_once(desk: Served) -> None:
    """The secret that was made is in the answer that made it; a reference is never resolved aloud."""
    admin = headers(desk, "trust", "admin")
    put = {"url": "https://example.org/hook"}
    made = (await desk.client.put("/teams/market/webhook", json=put, headers=admin)).json()
    assert made["secret"].startswith("whsec_")
    shown = (await desk.client.get("/teams/market/webhook", headers=admin)).json()
    assert (shown["url"], shown["secret"]) == (put["url"], None)
    referred = await desk.client.put("/teams/market/webhook", json={**put, "secret": "env:HOOK"}, headers=admin)
    assert referred.json()["secret"] is None
    for bad in ("ftp://x/", "https://user:word@x/", "https://", "nonsense"):
        answer = await desk.client.put("/teams/market/webhook", json={"url": bad}, headers=admin)
        assert answer.status_code == 422
    turned = await desk.client.post("/teams/market/webhook/rotate", json={"overlap_s": 60}, headers=admin)
    assert turned.json()["secret"].startswith("whsec_")
    kept = desk.memory.webhooks.webhooks["market"]
    assert (kept.secret, kept.former_secret) == (turned.json()["secret"], "env:HOOK")
    shown = (await desk.client.get("/teams/market/webhook", headers=admin)).json()
    assert (shown["secret"], shown["former_until"]) == (None, turned.json()["former_until"])
    for wrong in ({"overlap_s": -1}, {"secret": "word"}, {"url": "https://example.org/"}):
        answer = await desk.client.post("/teams/market/webhook/rotate", json=wrong, headers=admin)
        assert answer.status_code == 422
    assert (await desk.client.delete("/teams/market/webhook", headers=admin)).status_code == 200
    assert (await desk.client.post("/teams/market/webhook/rotate", json={}, headers=admin)).status_code == 404
    assert (await desk.client.get("/teams/market/webhook", headers=admin)).status_code == 404
    assert (await desk.client.put("/teams/nobody/webhook", json=put, headers=admin)).status_code == 404
