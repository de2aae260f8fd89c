"""Every error text that a caller can be shown, against the words that are kept in tests/snapshots."""

import json
from datetime import UTC, datetime, timedelta

from served import by_hand
from snapshot import snapshot
from source_texts import source_texts
from test_openapi import ERRORS

from gateway.core.errors import BudgetExceeded, Overloaded, QuotaExceeded
from gateway.web.doors import WebSettings

ITEM = {"message": "hello", "sender_role": "pro"}
TASK = "/tasks/message-moderation"
ROUTING = "/tasks/request-routing"

REQUESTS = {
    "an unknown task": ("POST", "/tasks/mesage-moderation/invoke", {"input": {}}),
    "a task of others": ("POST", f"{ROUTING}/invoke", {"input": {"text": "x"}}, "other"),
    "no JSON": ("POST", f"{TASK}/invoke", b"{"),
    "an unknown key": ("POST", f"{TASK}/invoke", {"input": ITEM, "inptu": 1}),
    "settings for the model": ("POST", f"{TASK}/invoke", {"input": ITEM, "kwargs": {"temperature": 1}}),
    "input that misfits": ("POST", f"{TASK}/invoke", {"input": {"message": 5}}),
    "NUL": ("POST", f"{TASK}/invoke", {"input": {**ITEM, "message": "\0"}}),
    "too deep": ("POST", f"{TASK}/invoke", b'{"input": ' + b"[" * 99 + b"]" * 99 + b"}"),
    "too much": ("POST", f"{TASK}/invoke", {"input": {**ITEM, "message": "x" * 3000}}),
    "too many": ("POST", f"{TASK}/batch", {"inputs": [ITEM] * 4}),
    "lists that differ": ("POST", f"{TASK}/batch", {"inputs": [ITEM] * 2, "config": [{}]}),
    "no stage could answer": ("POST", f"{ROUTING}/invoke", {"input": {"text": "break it"}}),
    "no such run": ("GET", f"{TASK}/runs/nothing", None),
    "no such version": ("GET", f"{TASK}/versions/nothing", None),
    "empty feedback": ("POST", f"{TASK}/feedback", {"run_id": "x"}),
    "no such page": ("GET", "/nowhere", None),
    "another method": ("DELETE", "/tasks", None),
    "no date": ("GET", "/usage?start=yesterday", None),
    "an instant without offset": ("GET", "/usage?start=2026-01-01T00:00:00", None),
    "an interval turned round": ("GET", "/usage?start=2026-02-01&end=2026-01-01", None),
    "no such key": ("DELETE", "/keys/nothing", None),
    "a key for nobody": ("POST", "/keys", {"team": "nobody", "scopes": ["read"]}),
    "a key without scopes": ("POST", "/keys", {"team": "market", "scopes": []}),
    "a team twice": ("POST", "/teams", {"name": "market"}),
    "a team with capitals": ("POST", "/teams", {"name": "Market"}),
    "a limit of nothing": (
        "PUT",
        "/teams/market/limits",
        {"limits": [{"resource": "cost", "limit": "ten", "per": "day"}]},
    ),
    "acts without number": ("GET", "/audit?limit=many", None),
    "acts before nothing": ("GET", "/audit?before=nothing", None),
}
REFUSALS: dict[str, Exception] = {
    "the quota is used up": QuotaExceeded("The quota of 600 requests per minute is used up.", retry_after_s=2.4),
    "the budget is used up": BudgetExceeded("A budget does not cover this request."),
    "a bug": RuntimeError("nobody is told this"),
    "no permit": Overloaded("The gateway is at its limit of concurrent requests.", retry_after_s=1),
}


async def test_every_error_text_is_as_it_was(serve):
    """One request for each thing that can go wrong; what changes a word shows it to a reviewer. No code is left out."""
    told = []
    async with serve(WebSettings(max_body_bytes=2000, batch_max=3, body_timeout_s=0.2)) as served:

        async def tell(name, method, path, body=None, team="market", headers=None):
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            headers = {**served.as_team(team), **(headers or {})}
            response = await served.client.request(method, path, content=content, headers=headers)
            told.append((name, response.json()))

        for name, request in REQUESTS.items():
            await tell(name, *request)
        later = (datetime.now(UTC) - timedelta(days=1)).isoformat()
        await tell("a key that is over", "POST", "/keys", {"team": "market", "scopes": ["read"], "expires_at": later})
        reader = served.with_key(served.memory.key("market", "read"))
        await tell("no scope", "POST", f"{TASK}/invoke", {"input": ITEM}, headers=reader)
        await tell("others' usage", "GET", "/usage?team=other", headers=reader)
        await tell(
            "no idempotency key", "POST", f"{TASK}/invoke", {"input": ITEM}, headers={"idempotency-key": "two words"}
        )
        _, slow = await by_hand(served, b'content-length: 100\r\n\r\n{"input":')
        told.append(("a body that does not come", json.loads(slow)))
        await tell("a bad key", "GET", "/tasks", headers={"authorization": "Bearer gk_short"})
        for name, error in REFUSALS.items():
            served.memory.store.refuse = error
            await tell(name, "POST", f"{TASK}/invoke", {"input": ITEM})
        served.memory.store.refuse = None
        unseen = served.with_key(served.memory.key("market", "read"))
        served.memory.keys.down = True
        await tell("the key store is away", "GET", "/tasks", headers=unseen)
    codes = {problem["code"] for _, problem in told}
    assert set(ERRORS) <= codes, "a code without a text here"
    text = "\n\n".join(f"# {name}\n{_readable(problem)}" for name, problem in told) + "\n"
    assert text == snapshot("errors.txt", text)


def test_no_text_of_an_error_changes_unseen():
    """Also those that take a broken store or another process to be shown: every text that stands in the source."""
    text = "\n".join(source_texts()) + "\n"
    assert text == snapshot("error-texts.txt", text)


def _readable(problem):
    """A problem document without what differs from run to run."""
    changing = {"request_id", "run_id", "metadata"}
    kept = {key: value for key, value in problem.items() if key not in changing}
    return json.dumps(kept, indent=2, ensure_ascii=False)
