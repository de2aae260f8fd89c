"""The reviewer's page over HTTP: who gets in, who does not, and what never reaches a browser."""

import hashlib
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import httpx
import pytest
from in_memory import CLOCK, Memory
from litestar.routes import HTTPRoute
from msgspec import Struct
from served import Served, serving

from gateway.core.reviews import Item
from gateway.web.auth import Doorkeeper, Keyring
from gateway.web.doors import WebSettings
from gateway.web.pages.html import ASSETS
from gateway.web.pages.wiring import create_pages

# What htmx publishes for a `script` element of its version 2.0.3 (`integrity`).
HTMX = "0895/pl2MU10Hqc6jd4RvrthNlDiE9U1tWmX7WRESftEDRosgxNsQG/Ze9YMRzHq"
SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
TEXT = {"message": "Shall I pay you in cash?", "sender_role": "customer"}


class Browser(Struct, frozen=True):
    """A client that keeps cookies and has no key in its headers, as a browser has none."""

    client: httpx.AsyncClient

    async def page(self, path: str = "/desk") -> str:
        """The page's HTML."""
        return (await self.client.get(path)).text

    async def act(self, path: str, **fields: Any) -> httpx.Response:
        """Post a form of the page that is open, with its token."""
        csrf = form_token(await self.page("/desk/sign-in"))
        return await self.client.post(path, data={"csrf": csrf, **fields})


@asynccontextmanager
async def browser(served: Served, key: str = "") -> AsyncIterator[Browser]:
    """Signed in with `key`, if there is one."""
    async with httpx.AsyncClient(base_url=served.url, follow_redirects=True, timeout=20) as client:
        visitor = Browser(client)
        if key:
            assert (await visitor.act("/desk/sign-in", key=key)).status_code == 200
        yield visitor


@pytest.fixture
async def desk() -> AsyncIterator[Served]:
    """A gateway with an empty queue."""
    async with serving() as running:
        yield running


async def ask(served: Served, text: Mapping[str, Any] = TEXT, owner: str = "trust", **more: Any) -> str:
    """A held item."""
    at, id_ = CLOCK.now(), CLOCK.new_id()
    given: dict[str, Any] = {"id": id_, "root_id": id_, "kind": "held", **more}
    item = Item(
        task="message-moderation", caller_team="market", owner_team=owner, fingerprint="f" * 16, severity=2, score=0.9,
        recommended="block", created_at=at, due_at=at + timedelta(hours=1), rank_at=at, **given,
    )  # fmt: skip
    await served.memory.reviews.put(item, CLOCK.new_id(), text, None)
    return id_


def form_token(html: str) -> str:
    """The token of the first form."""
    found = re.search(r'name="csrf" value="(\w+)"', html)
    assert found is not None
    return found.group(1)


def lease_token(html: str) -> str:
    """The lease of the item on the page."""
    found = re.search(r'name="token" value="([\w-]+)"', html)
    assert found is not None
    return found.group(1)


async def test_a_key_opens_a_session_that_does_not_hold_the_key(desk: Served) -> None:
    """The cookie is a random id, out of reach of scripts and of other sites, and new with each sign-in."""
    key = desk.memory.key("trust", "review")
    async with browser(desk) as visitor:
        before = (await visitor.client.get("/desk/sign-in")).headers["set-cookie"]
        answer = await visitor.client.post(
            "/desk/sign-in", data={"csrf": form_token(await visitor.page()), "key": key}, follow_redirects=False
        )
        cookie = answer.headers["set-cookie"]
        assert (answer.status_code, answer.headers["location"]) == (303, "/desk")
        assert {"HttpOnly", "SameSite=Strict", "Path=/desk"} <= set(cookie.split("; "))
        assert key not in cookie
        assert cookie.split(";")[0] != before.split(";")[0]
        assert "Nothing on your desk" in await visitor.page()
        assert not any(key in name or name in cookie for name in desk.memory.desk.keys)


async def test_behind_tls_the_cookie_is_secure(desk: Served) -> None:
    """Also where a proxy in front speaks it."""
    async with browser(desk) as visitor:
        answer = await visitor.client.get("/desk/sign-in", headers={"x-forwarded-proto": "https"})
    assert "; Secure" in answer.headers["set-cookie"]


async def test_sign_out_ends_the_session_and_returns_what_was_leased(desk: Served) -> None:
    """The old cookie is worth nothing, and the item is somebody else's to take."""
    id_ = await ask(desk)
    async with browser(desk, desk.memory.key("trust", "review")) as visitor:
        await visitor.act("/desk/next")
        cookie = visitor.client.cookies["taskgate_desk"]
        assert desk.memory.reviews.items[id_].state == "leased"
        await visitor.act("/desk/sign-out")
        assert desk.memory.reviews.items[id_].state == "open"
        again = await visitor.client.get("/desk", headers={"cookie": f"taskgate_desk={cookie}"}, follow_redirects=False)
        assert again.headers["location"] == "/desk/sign-in"


async def test_a_session_lives_no_longer_than_its_key(desk: Served) -> None:
    """A key that is revoked or has expired opens nothing any more, whatever the session's own time."""
    desk.memory.key("trust", "review", expires_at=datetime.now(UTC) - timedelta(minutes=1))
    expired = list(desk.memory.keys.keys)[-1]
    async with browser(desk, desk.memory.key("trust", "review")) as visitor:
        assert "Sign out" in await visitor.page()
        desk.memory.desk.keys = dict.fromkeys(desk.memory.desk.keys, expired)
        assert "Your key" in await visitor.page()


async def test_bad_keys_are_refused_and_throttled_with_those_of_the_api(desk: Served) -> None:
    """The form is no way around the throttle: after twenty at once the address waits; good keys still get in."""
    async with browser(desk) as visitor:
        csrf = form_token(await visitor.page())
        bad, good = {"csrf": csrf, "key": "gk_no"}, {"csrf": csrf, "key": desk.memory.key("trust", "review")}
        statuses = [(await visitor.client.post("/desk/sign-in", data=bad)).status_code]
        while statuses[-1] == 401 and len(statuses) < 200:
            statuses.append((await visitor.client.post("/desk/sign-in", data=bad)).status_code)
        assert (statuses[:20], statuses[-1]) == ([401] * 20, 429)
        assert (await visitor.client.post("/desk/sign-in", data=good)).status_code == 200


async def test_a_key_without_a_role_does_not_get_in(desk: Served) -> None:
    """Callers have nothing to do here."""
    async with browser(desk) as visitor:
        answer = await visitor.act("/desk/sign-in", key=desk.memory.key("trust", "invoke", "read"))
        assert answer.status_code == 403
        assert "not a reviewer" in answer.text
        assert desk.memory.desk.keys == {}


def forms() -> list[str]:
    """Every path that takes a form."""
    doors, settings = Memory().doors(), WebSettings()
    keyring = Keyring(doors.keys, doors.clock)
    pages = create_pages(doors, settings, keyring, Doorkeeper(keyring, doors.clock))
    routes = [route for route in pages.routes if isinstance(route, HTTPRoute)]
    return sorted(
        {route.path for route in routes for handler in route.route_handlers if "POST" in handler.http_methods}
    )


@pytest.mark.parametrize("path", forms())
async def test_every_form_needs_the_token_of_its_own_session(desk: Served, path: str) -> None:
    """Without a token, and with another visitor's, nothing happens."""
    id_ = await ask(desk)
    key = desk.memory.key("trust", "review")
    async with browser(desk, key) as visitor, browser(desk, key) as other:
        await visitor.act("/desk/next")
        before, foreign = desk.memory.reviews.items[id_], form_token(await other.page())
        target = f"/desk{path.replace('{review_id:str}', id_)}"
        fields = {"token": before.lease_token, "outcome": "deliver", "reason": "unclear", "key": key}
        for token in ({}, {"csrf": foreign}):
            answer = await visitor.client.post(target, data={**fields, **token})
            assert (answer.status_code, "did not come from this page" in answer.text) == (403, True)
        assert desk.memory.reviews.items[id_] == before
        assert "Sign out" in await visitor.page()


async def test_nobody_without_a_session_sees_a_page(desk: Served) -> None:
    """The browser goes to the sign-in; a key in a header opens no page either."""
    id_ = await ask(desk)
    async with browser(desk) as visitor:
        for headers in ({}, desk.as_team("trust")):
            answer = await visitor.client.get("/desk", headers=headers, follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (303, "/desk/sign-in")
        answer = await visitor.client.post(f"/desk/{id_}/reveal", follow_redirects=False)
        assert answer.headers["location"] == "/desk/sign-in"
        script = await visitor.client.post(f"/desk/{id_}/reveal", headers={"hx-request": "true"})
        assert (script.status_code, script.headers["hx-redirect"]) == (401, "/desk/sign-in")


async def test_what_a_customer_wrote_is_text_and_never_markup(desk: Served) -> None:
    """Stored XSS: every place that shows an item's words escapes them, and the policy would run nothing inline."""
    turn = {"sender_role": SCRIPT, "message": SCRIPT}
    text = {"message": SCRIPT, "sender_role": "pro", "context": [turn], SCRIPT: [SCRIPT]}
    await ask(desk, text, policies=(SCRIPT,), stage=SCRIPT)
    await ask(desk, text)
    async with browser(desk, desk.memory.key("trust", "lead")) as visitor:
        await visitor.act("/desk/next")
        answer = await visitor.client.get("/desk")
        ahead = await visitor.act("/desk/ahead", item="x")
        for html in (answer.text, ahead.text):
            assert SCRIPT in unescape(html)
            assert "<script>" not in html
            assert "<img" not in html
        echoed = await visitor.page(f"/desk?did={SCRIPT}&of={SCRIPT}&item={SCRIPT}&shown={SCRIPT}")
        assert "<script>" not in echoed
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<[^>]+\s(on\w+|style)=", answer.text)


async def test_an_undo_of_a_crafted_link_leaves_the_path_alone(desk: Served) -> None:
    """The id in the address becomes an attribute only, escaped."""
    async with browser(desk, desk.memory.key("trust", "review")) as visitor:
        html = await visitor.page("/desk?did=block&of=%22%3E%3Cb%3E")
    assert "<b>" not in html


@pytest.mark.parametrize("act", ["reveal", "decide", "skip", "undo"])
async def test_another_teams_review_looks_like_none(desk: Served, act: str) -> None:
    """Its id is of no use: nothing is shown, nothing changes."""
    id_ = await ask(desk, {"message": "not for your eyes", "sender_role": "pro"})
    before = desk.memory.reviews.items[id_]
    async with browser(desk, desk.memory.key("other", "review", "lead")) as visitor:
        fields = {"token": "x", "outcome": "deliver", "reason": "unclear"}
        answer = await visitor.act(f"/desk/{id_}/{act}", **fields)
        assert answer.status_code == (200 if act == "reveal" else 404)
        assert "not for your eyes" not in answer.text + await visitor.page(f"/desk?item={id_}&shown={id_}")
    assert desk.memory.reviews.items[id_] == before


async def test_each_role_reads_what_is_its_own(desk: Served) -> None:
    """Reviewers see masked text and no queue; leads see both; administrators numbers and no text."""
    text = {"message": "Write to jo@example.org", "sender_role": "pro"}
    await ask(desk, text, kind="second")
    for scope, shown, hidden in (
        ("review", ["[email]", "Waiting"], ["jo@example.org", "oldest", "second"]),
        ("lead", ["jo@example.org", "oldest"], ["[email]"]),
        ("admin", ["oldest", "for reviewers"], ["jo@example.org", "[email]", "Take the next"]),
    ):
        async with browser(desk, desk.memory.key("trust", scope)) as visitor:
            taken = await visitor.act("/desk/next")
            assert taken.status_code == (403 if scope == "admin" else 200)
            html = await visitor.page()
            assert [word for word in shown if word not in html] == []
            assert [word for word in hidden if word in html] == []
            await visitor.act("/desk/sign-out")


async def test_an_item_goes_from_the_queue_to_a_decision_and_back(desk: Served) -> None:
    """Take, reveal, block, undo, deliver; the page then shows what was leased ahead."""
    first, second = await ask(desk), await ask(desk)
    items = desk.memory.reviews.items
    async with browser(desk, desk.memory.key("trust", "review")) as visitor:
        html = (await visitor.act("/desk/next")).text
        assert ("blur-2" in html, "0 of severity 2" in html) == (True, True)
        revealed = (await visitor.act(f"/desk/{first}/reveal")).text
        assert ("blur-2" in revealed, "1 of severity 2" in revealed) == (False, True)
        assert second in (await visitor.act("/desk/ahead", item=first)).text
        fields = {"token": lease_token(html), "outcome": "block"}
        blocked = (await visitor.act(f"/desk/{first}/decide", **fields)).text
        assert ("Blocked." in blocked, f'data-review="{second}"' in blocked) == (True, True)
        undone = (await visitor.act(f"/desk/{first}/undo")).text
        assert f'data-review="{first}"' in undone
        fields = {"token": lease_token(undone), "outcome": "deliver"}
        await visitor.act(f"/desk/{first}/decide", **fields)
        late = await visitor.act(f"/desk/{first}/decide", **fields)
        assert "Too late" in late.text
    assert (items[first].outcome, items[second].state) == ("deliver", "leased")


async def test_who_reads_keeps_the_item_and_the_next_one(desk: Served) -> None:
    """Renewal moves the end of both leases, and the forms of the page stay good; what was lost is said to be."""
    first, second = await ask(desk), await ask(desk)
    items = desk.memory.reviews.items
    async with browser(desk, desk.memory.key("trust", "review")) as visitor:
        html = (await visitor.act("/desk/next")).text
        await visitor.act("/desk/ahead", item=first)
        every = re.search(r'hx-trigger="every (\d+)s"', html)
        assert every is not None
        assert 150 <= int(every.group(1)) <= 200
        before = [items[id_].lease_until for id_ in (first, second)]
        assert (await visitor.act(f"/desk/{first}/renew")).status_code == 200
        assert all(items[id_].lease_until > end for id_, end in zip((first, second), before, strict=True))
        await visitor.act(f"/desk/{first}/decide", token=lease_token(html), outcome="deliver")
        assert (await visitor.act(f"/desk/{first}/renew")).status_code == 409
    async with browser(desk, desk.memory.key("trust", "review")) as other:
        end = items[second].lease_until
        assert (await other.act(f"/desk/{second}/renew")).status_code == 409
    assert (items[first].outcome, items[second].lease_until) == ("deliver", end)


async def test_how_reviewers_agree_is_for_leads(desk: Served) -> None:
    """Each reviewer beside what is known; a reviewer does not read it."""
    for scope, status in (("lead", 200), ("admin", 200), ("review", 403)):
        async with browser(desk, desk.memory.key("trust", scope)) as visitor:
            answer = await visitor.client.get("/desk/agreement")
            assert (answer.status_code, ">ann<" in answer.text) == (status, status == 200)


def test_the_script_is_the_one_that_htmx_publishes() -> None:
    """Whoever packed the file, its bytes are those of the release: the hash is that of htmx's own installation page."""
    assert b64encode(hashlib.sha384(ASSETS["htmx.js"].body).digest()).decode() == HTMX
