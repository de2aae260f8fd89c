"""The reviewer's page in a real browser, over a real gateway: three held messages decided with the keyboard alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from browsers import faults, fits_at_400_percent, sign_in
from playwright.async_api import Browser, Page, expect
from reviewers import CALLER, OWNER, Receiver
from sqlalchemy import update
from stack import Gateway, gateway, home_of

from gateway.adapters.sql.access import new_key, opened
from gateway.adapters.sql.review_book import SqlReviewBook
from gateway.adapters.sql.tables import review_item, webhook_message
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.core.clock import Clock
from gateway.core.review_ports import Filter
from gateway.core.webhooks import Webhook, new_secret

ASKED = ("Shall I pay you in cash and skip the fee?", "Can you call me before you accept?", "Cash is cheaper for both.")
TASK = """
owner = "etiquette"
description = "Does a message lead off the platform?"
input = "input.json"
output = "output.json"
positive = "violation"
[[stage]]
name = "rules"
kind = "rules"
file = "rules.toml"
[actions]
clean = "deliver"
violation = "review"
deferred = "review"
[policy.off_platform]
severity = 2
text = "off_platform.md"
[policy.spam]
severity = 1
text = "spam.md"
"""
RULES = """
[[rule]]
name = "aside"
label = "violation"
policy = "off_platform"
patterns = ['(?i)\\bcash\\b', '(?i)\\bcall me\\b']
"""
INPUT = """{"type": "object", "required": ["message"], "properties": {"message": {"type": "string"},
    "sender_role": {"type": "string"}, "context": {"type": "array"}}}"""
FILES = {
    "models.toml": "",
    "tasks/posts/task.toml": TASK,
    "tasks/posts/rules.toml": RULES,
    "tasks/posts/input.json": INPUT,
    "tasks/posts/output.json": '{"type": "object"}',
    "tasks/posts/off_platform.md": "# Off the platform\n\n**A violation:** asking to pay elsewhere.\n",
    "tasks/posts/spam.md": "# Spam\n\n**A violation:** advertising.\n",
}
SETTINGS = {"review_undo_s": "300", "sweep_s": "1", "webhook_retry_s": "0.05"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_three_held_messages_are_decided_by_keyboard(
    tmp_path: Path, database_url: str, valkey: str, chromium: Browser
) -> None:
    """Sign in, block, deliver, undo, decide again: the items leave the queue, and the caller hears of each."""
    key = await new_key(database_url, OWNER, frozenset({"review"}))
    receiver = Receiver(secret := new_secret(), len(ASKED))
    async with receiver.listening() as hook:
        caller = await new_key(database_url, CALLER, frozenset({"invoke"}))
        async with opened(database_url) as database:
            await SqlWebhooks(database).put(Webhook(CALLER, hook, secret, Clock(new_id=str).now()))
        with gateway(home_of(tmp_path, FILES), database_url, valkey, "http://127.0.0.1:1", **SETTINGS) as up:
            await _hold(up, caller)
            page = await (await chromium.new_context(viewport={"width": 1200, "height": 800})).new_page()
            told: list[str] = []
            page.on("console", lambda message: told.append(message.text))
            await sign_in(page, up.url, key)
            await _decide_all(page)
            assert receiver.taken == {}
            await _window_passes(database_url)
            await receiver.complete.wait()
    outcomes = sorted(message["data"]["outcome"] for message in receiver.taken.values())
    assert outcomes == ["block", "block", "deliver"]
    assert sorted(message["data"]["policies"] for message in receiver.taken.values()) == [
        [],
        ["off_platform"],
        ["spam"],
    ]
    # Whatever the content policy had refused would be here.
    assert [text for text in told if "Content Security Policy" in text] == []


@pytest.mark.timeout(300)
async def test_the_page_has_no_fault_that_a_machine_can_find(
    tmp_path: Path, database: str, valkey: str, chromium: Browser
) -> None:
    """Names, roles and contrast by WCAG 2.2 AA, light and dark: signing in, blurred, revealed, decided, empty."""
    key = await new_key(database, OWNER, frozenset({"review", "lead"}))
    caller = await new_key(database, CALLER, frozenset({"invoke"}))
    with gateway(home_of(tmp_path, FILES), database, valkey, "http://127.0.0.1:1", **SETTINGS) as up:
        await _hold(up, caller, ASKED[:1])
        page = await (await chromium.new_context()).new_page()
        await page.goto(f"{up.url}/desk")
        assert await faults(page) == []
        await sign_in(page, up.url, key)
        await page.keyboard.press("n")
        await expect(page.get_by_role("button", name="Reveal")).to_be_visible()
        assert await faults(page) == []
        await page.keyboard.press("r")
        await expect(page.get_by_role("group", name="The text")).to_be_focused()
        assert await faults(page) == []
        await page.keyboard.press("b")
        await expect(page.get_by_role("heading", name="Nothing on your desk")).to_be_visible()
        await expect(page.get_by_role("button", name="Undo")).to_be_visible()
        assert await faults(page) == []
        await page.goto(f"{up.url}/desk/agreement")
        assert await faults(page) == []


@pytest.mark.timeout(300)
async def test_an_item_stays_with_whoever_reads_it(
    tmp_path: Path, database: str, valkey: str, chromium: Browser
) -> None:
    """The lease begins anew while the page is open and somebody is there, and no more once nobody was for long. Where
    it was lost all the same, the page says so by itself.
    """
    key = await new_key(database, OWNER, frozenset({"review"}))
    caller = await new_key(database, CALLER, frozenset({"invoke"}))
    with gateway(home_of(tmp_path, FILES), database, valkey, "http://127.0.0.1:1", **SETTINGS) as up:
        await _hold(up, caller, ASKED[:1])
        page = await (await chromium.new_context()).new_page()
        await page.clock.install()
        await sign_in(page, up.url, key)
        await page.keyboard.press("n")
        await expect(page.locator("#case-title")).to_be_focused()
        ends = [await _lease_until(database)]
        for _ in range(2):
            async with page.expect_response(lambda answer: answer.url.endswith("/renew")) as renewed:
                await page.clock.fast_forward("03:20")
            assert (await renewed.value).status == 200
            ends.append(await _lease_until(database))
        assert ends == sorted(set(ends))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.clock.fast_forward("15:00")
        await page.keyboard.press("r")
        await expect(page.get_by_role("group", name="The text")).to_be_focused()
        assert [url for url in asked if url.endswith("/renew")] == []
        await _lose_lease(database)
        await page.clock.fast_forward("03:20")
        await expect(page.locator("[data-notice]")).to_contain_text("Too late")


async def _lease_until(url: str) -> str:
    async with opened(url) as database:
        (item,) = await SqlReviewBook(database).listed(Filter(state="leased"))
    return str(item.lease_until)


async def _window_passes(url: str) -> None:
    """As if nobody could undo anything any more."""
    async with opened(url) as database, database.begin() as connection:
        await connection.execute(update(webhook_message).values(due_at=Clock(new_id=str).now()))


async def _lose_lease(url: str) -> None:
    """As if nobody had renewed it in time."""
    async with opened(url) as database, database.begin() as connection:
        await connection.execute(update(review_item).values(lease_until=Clock(new_id=str).now()))


async def _decide_all(page: Page) -> None:
    """By keys only; each step waits for what a reviewer would see."""
    case, words = page.locator("article:not([hidden])"), page.get_by_role("group", name="The text")
    await page.keyboard.press("n")
    await expect(case).to_contain_text(ASKED[0])
    await expect(words).to_have_count(0)
    await expect(page.locator("#ahead")).to_have_count(1)
    await page.keyboard.press("r")
    await expect(words).to_contain_text(ASKED[0])
    await expect(words).to_be_focused()
    await expect(page.get_by_text("1 of severity 2")).to_be_visible()
    await expect(page.get_by_role("checkbox", name="off platform")).to_be_checked()
    await fits_at_400_percent(page)

    await page.keyboard.press("b")
    await _now(page, "Blocked.", ASKED[1])
    await page.keyboard.press("d")
    await _now(page, "Delivered.", ASKED[2])
    await page.keyboard.press("u")
    await _now(page, "Taken back: decide again.", ASKED[1])
    await page.keyboard.press("d")
    await _now(page, "Delivered.", ASKED[2])
    # The action is right, the policy is not.
    await page.keyboard.press("1")
    await page.keyboard.press("2")
    await page.keyboard.press("b")
    await expect(page.get_by_role("status")).to_have_text("Blocked.")
    await expect(page.get_by_role("heading", name="Nothing on your desk")).to_be_visible()
    await expect(page.get_by_text("Waiting: 0")).to_be_visible()


async def _now(page: Page, said: str, text: str) -> None:
    """The notice is announced, the item is there, and its heading has the focus: the keys act on it."""
    await expect(page.get_by_role("status")).to_have_text(said)
    await expect(page.locator("article:not([hidden])")).to_contain_text(text)
    await expect(page.locator("#case-title")).to_be_focused()
    await expect(page.locator("#ahead")).to_have_count(1 if text == ASKED[1] else 0)


async def _hold(up: Gateway, key: str, texts: Sequence[str] = ASKED) -> None:
    async with up.client(key) as client:
        for text in texts:
            given = {"message": text, "sender_role": "customer", "context": [{"message": "I can come on Friday."}]}
            answer = await client.post("/tasks/posts/invoke", json={"input": given})
            assert answer.json()["metadata"]["action"] == "review"
