"""Tasks, runs, feedback, usage, keys, teams and health, over a real socket."""

from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.errors import Unavailable
from gateway.web.doors import Check

INVOKE = "/tasks/message-moderation/invoke"
ITEM = {"message": "hello", "sender_role": "pro"}


async def run_of(served, team: str = "market") -> str:
    """The id of a new run of the moderation task by that team."""
    response = await served.client.post(INVOKE, json={"input": ITEM}, headers=served.as_team(team))
    return response.json()["metadata"]["run_id"]


async def test_tasks_are_listed_for_those_who_may_call_them(served):
    """A team sees the tasks that are open to it and its own; never a threshold or a prompt."""
    mine = (await served.client.get("/tasks")).json()["tasks"]
    theirs = (await served.client.get("/tasks", headers=served.as_team("other"))).json()["tasks"]
    assert [task["name"] for task in mine] == ["message-moderation", "request-routing"]
    assert [task["name"] for task in theirs] == ["message-moderation"]
    assert set(mine[0]) == {
        "name", "description", "owner", "payer", "stages", "actions", "policies", "fingerprint",
    }  # fmt: skip


async def test_schemas_are_those_of_the_task(served):
    """Input and output schema are served as JSON schema."""
    schema = (await served.client.get("/tasks/message-moderation/input_schema")).json()
    assert schema["required"] == ["message", "sender_role"]
    assert (await served.client.get("/tasks/message-moderation/output_schema")).json() == {"type": "object"}


async def test_a_run_is_shown_to_caller_and_owner_only(served):
    """The team that asked and the team that owns the task read a run; another is refused, and nobody reads the text."""
    run_id = await run_of(served)
    path = f"/tasks/message-moderation/runs/{run_id}"
    for team, status in (("market", 200), ("trust", 200), ("other", 403)):
        assert (await served.client.get(path, headers=served.as_team(team))).status_code == status
    shown = await served.client.get(path)
    assert shown.json()["metadata"]["run_id"] == run_id
    assert "hello" not in shown.text


@pytest.mark.parametrize("run_id", ["nothing", "01a20475-46a6-7442-b5e6-a3347102eacd", "%00", "x" * 300])
async def test_a_run_that_is_not_there_is_404(served, run_id):
    """Unknown and impossible ids are not found; so is a run under another task's path."""
    response = await served.client.get(f"/tasks/message-moderation/runs/{run_id}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    elsewhere = await served.client.get(f"/tasks/request-routing/runs/{await run_of(served)}")
    assert elsewhere.status_code == 404


async def test_feedback_is_kept_with_who_gave_it(served):
    """A label of the task or a comment is added to a run by a team that may see it; an empty one is refused."""
    run_id, path = await run_of(served), "/tasks/message-moderation/feedback"
    given = await served.client.post(path, json={"run_id": run_id, "label": "violation"})
    assert given.status_code == 201
    kept = served.memory.feedback.given[-1]
    assert (kept.id, kept.run_id, kept.team, kept.label) == (given.json()["feedback_id"], run_id, "market", "violation")
    assert (await served.client.post(path, json={"run_id": run_id})).status_code == 422
    mistyped = await served.client.post(path, json={"run_id": run_id, "label": "violaton"})
    assert mistyped.json()["errors"] == [{"path": "$.label", "message": "did you mean `violation`?"}]
    theirs = await served.client.post(path, json={"run_id": run_id, "comment": "x"}, headers=served.as_team("other"))
    assert theirs.status_code == 403


async def test_usage_is_of_the_own_team_unless_for_finance(served):
    """`read` sees what its team pays for, `finance` sees all; asking for another team without it is refused."""
    await run_of(served, "market")
    await run_of(served, "other")
    reader, finance = served.memory.key("market", "read"), served.memory.key("market", "finance")
    own = (await served.client.get("/usage", headers=served.with_key(reader))).json()
    assert {line["team"] for line in own["lines"]} == {"market"}
    assert own["total_cost"] == "0.000000000"
    every = (await served.client.get("/usage", headers=served.with_key(finance))).json()
    assert {line["team"] for line in every["lines"]} == {"market", "other"}
    refused = await served.client.get("/usage?team=other", headers=served.with_key(reader))
    assert refused.status_code == 403


@pytest.mark.parametrize(
    "query",
    ["start=yesterday", "end=2026-13-01", "start=2026-01-01T00:00:00", "start=2026-02-01&end=2026-01-01",
     "start=0001-01-01T00:00:00%2B23:59", "start=0001-01-01T00:00:00Z", "end=9999-12-31T23:30:00Z"],
)  # fmt: skip
async def test_an_interval_must_make_sense(served, query):
    """A date that is none, an instant without an offset, or an end before the start is invalid_input."""
    response = await served.client.get(f"/usage?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")


async def test_usage_starts_with_the_month_and_is_half_open(served):
    """Without dates the interval is this month so far; the end is excluded."""
    now = datetime.now(UTC)
    answer = (await served.client.get("/usage")).json()
    assert datetime.fromisoformat(answer["start"]) == now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    future = (
        await served.client.get(
            "/usage",
            params={"start": (now + timedelta(days=1)).isoformat(), "end": (now + timedelta(days=2)).isoformat()},
        )
    ).json()
    assert future["lines"] == []


async def test_the_life_of_a_key(served):
    """A key is created, works, is listed without its secret, is rotated with an overlap, and is revoked at once."""
    created = await served.client.post("/keys", json={"team": "other", "scopes": ["invoke"]})
    assert created.status_code == 201
    text, info = created.json()["key"], created.json()["info"]
    assert (await served.client.post(INVOKE, json={"input": ITEM}, headers=served.with_key(text))).status_code == 200
    listed = await served.client.get("/keys?team=other")
    assert info["id"] in {key["id"] for key in listed.json()["keys"]}
    assert text.split("_", 2)[2] not in listed.text
    assert "hash" not in listed.text
    rotated = await served.client.post(f"/keys/{info['id']}/rotate", json={"overlap_s": 3600})
    for key in (text, rotated.json()["key"]):
        assert (await served.client.post(INVOKE, json={"input": ITEM}, headers=served.with_key(key))).status_code == 200
    revoked = await served.client.delete(f"/keys/{info['id']}")
    assert revoked.json()["revoked_at"] is not None
    assert (await served.client.post(INVOKE, json={"input": ITEM}, headers=served.with_key(text))).status_code == 401
    assert (await served.client.post(f"/keys/{info['id']}/rotate", json={})).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"team": "nobody", "scopes": ["invoke"]}, 404),
        ({"team": "other", "scopes": ["everything"]}, 422),
        ({"team": "other", "scopes": []}, 422),
        ({"team": "other", "scopes": ["invoke"], "expires_at": "2020-01-01T00:00:00Z"}, 422),
        ({"team": "other", "scopes": ["invoke"], "expires_at": "2090-01-01T00:00:00"}, 422),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(served, body, status):
    """An unknown team or scope, no scope, or an end that has passed or has no offset creates nothing."""
    before = len(served.memory.keys.keys)
    assert (await served.client.post("/keys", json=body)).status_code == status
    assert len(served.memory.keys.keys) == before


async def test_a_key_that_is_not_there_cannot_be_revoked(served):
    """Revoking an unknown key is 404."""
    assert (await served.client.delete("/keys/ffffffffffffffff")).status_code == 404


async def test_teams_are_created_once_and_listed(served):
    """A name is taken once; names follow the pattern of all names."""
    assert (await served.client.post("/teams", json={"name": "fresh"})).status_code == 201
    again = await served.client.post("/teams", json={"name": "fresh"})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert (await served.client.post("/teams", json={"name": "No Such"})).status_code == 422
    assert "fresh" in {team["name"] for team in (await served.client.get("/teams")).json()["teams"]}


async def test_health_needs_no_key(served):
    """Probes ask without one; a process that wants traffic answers 200."""
    for path in ("/health/live", "/health/ready"):
        assert (await served.client.get(path, headers={"authorization": ""})).status_code == 200


async def test_readiness_follows_the_parts(serve):
    """A degraded part is shown and does not matter; a required one that is down, or draining, means 503."""
    state: dict[str, Exception | str | None] = {"database": None, "store": None}

    def check(name: str, required: bool) -> Check:
        async def probe() -> str | None:
            if isinstance(found := state[name], Exception):
                raise found
            return found

        return Check(probe, required)

    cases = [
        (None, None, 200, "ready"),
        (None, "from memory", 200, "degraded"),
        (None, Unavailable("secret address"), 200, "degraded"),
        (Unavailable("secret address"), None, 503, "down"),
    ]
    for database, store, status, word in cases:
        state.update(database=database, store=store)
        async with serve(checks={"database": check("database", True), "store": check("store", False)}) as served:
            response = await served.client.get("/health/ready")
            assert (response.status_code, response.json()["status"]) == (status, word)
            assert "secret" not in response.text
            served.memory.draining = True
            response = await served.client.get("/health/ready")
            assert (response.status_code, response.json()["status"]) == (503, "draining")


async def test_limits_of_a_team_are_replaced_whole(served):
    """`PUT /teams/{team}/limits` says what holds from now on; what cannot be counted is refused."""
    path, limit = "/teams/other/limits", {"resource": "cost", "limit": "200.00", "per": "month"}
    done = await served.client.put(path, json={"limits": [limit]})
    assert (done.status_code, done.json()["limits"]) == (200, [limit])
    (other,) = [t for t in (await served.client.get("/teams")).json()["teams"] if t["name"] == "other"]
    assert other["limits"] == [limit]
    for wrong in ({**limit, "limit": 200}, {**limit, "per": None}, {"resource": "requests", "limit": -1, "per": "day"}):
        assert (await served.client.put(path, json={"limits": [wrong]})).status_code == 422
    assert (await served.client.put("/teams/nobody/limits", json={"limits": []})).status_code == 404
    assert (await served.client.put(path, json={"limits": []})).json()["limits"] == []


async def test_a_version_is_looked_up_by_all_and_read_by_its_owner(served):
    """A run's fingerprint can be looked up by who may call the task; what it was made of is for the owner alone."""
    path = "/tasks/message-moderation/versions"
    (line,) = (await served.client.get(path)).json()["versions"]
    assert line["current"]
    theirs = (await served.client.get(f"{path}/{line['fingerprint']}")).json()
    own = (await served.client.get(f"{path}/{line['fingerprint']}", headers=served.as_team("trust"))).json()
    assert (theirs["config"], own["config"]) == (None, {"declaration": {}})
    assert (await served.client.get(f"{path}/{'f' * 16}")).status_code == 404
    closed = await served.client.get("/tasks/request-routing/versions", headers=served.as_team("other"))
    assert closed.status_code == 403


async def test_the_audit_log_is_read_page_by_page(serve):
    """Acts over HTTP name the key that did them; `next` leads to the older ones."""
    async with serve() as served:
        for _ in range(3):
            assert (await served.client.post("/keys", json={"team": "market", "scopes": ["read"]})).status_code == 201
        first = (await served.client.get("/audit?limit=2")).json()
        rest = (await served.client.get(f"/audit?limit=2&before={first['next']}")).json()
        assert [len(first["acts"]), len(rest["acts"]), rest["next"]] == [2, 1, None]
        assert {act["by_team"] for act in first["acts"] + rest["acts"]} == {"market"}


async def test_an_answer_given_without_the_store_says_so(served):
    """`x-gateway-degraded: quotas` where the counters could not be asked, and never otherwise."""
    assert "x-gateway-degraded" not in (await served.client.post(INVOKE, json={"input": ITEM})).headers
    served.memory.store.refuse = Unavailable("The quota store is unavailable.")
    try:
        response = await served.client.post(INVOKE, json={"input": ITEM})
    finally:
        served.memory.store.refuse = None
    assert (response.status_code, response.headers["x-gateway-degraded"]) == (200, "quotas")
