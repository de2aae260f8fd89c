"""The reviewer's page in a real browser, over a real gateway: three held messages decided with the keyboard alone."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect
from reviewers import CALLER, OWNER, Receiver
from stack import MIGRATIONS, Gateway, gateway

from gateway.adapters.sql.access import new_key, opened
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.core.clock import Clock
from gateway.core.webhooks import Webhook, new_secret

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
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
expect.set_options(timeout=30_000)
SETTINGS = {"review_undo_s": "5", "sweep_s": "1", "webhook_retry_s": "0.05"}


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """Headless, Debian's or whatever CHROMIUM names."""
    if CHROMIUM is None:
        pytest.skip("no browser: install chromium, or name one in CHROMIUM")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.mark.timeout(300)
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
        with gateway(_home(tmp_path), database_url, valkey, "http://127.0.0.1:1", **SETTINGS) as up:
            await _hold(up, caller)
            page = await (await chromium.new_context(viewport={"width": 1200, "height": 800})).new_page()
            told: list[str] = []
            page.on("console", lambda message: told.append(message.text))
            await _sign_in(page, up.url, key)
            await _decide_all(page, tmp_path)
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


async def _sign_in(page: Page, url: str, key: str) -> None:
    await page.goto(f"{url}/desk")
    await expect(page.get_by_label("Your key")).to_be_focused()
    await page.keyboard.type(key)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Nothing on your desk")).to_be_visible()
    # Keys act once the scripts have run.
    await page.wait_for_load_state()


async def _decide_all(page: Page, folder: Path) -> None:
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
    await page.screenshot(path=os.environ.get("SCREENSHOT", folder / "review-page.png"), caret="initial")
    await _fits_at_400_percent(page)

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


async def _fits_at_400_percent(page: Page) -> None:
    """A window of 1280 pixels at 400 % is 320 wide: one column, and nothing to scroll sideways."""
    await page.set_viewport_size({"width": 320, "height": 640})
    widths = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]
    await page.set_viewport_size({"width": 1200, "height": 800})


async def _hold(up: Gateway, key: str) -> None:
    async with up.client(key) as client:
        for text in ASKED:
            given = {"message": text, "sender_role": "customer", "context": [{"message": "I can come on Friday."}]}
            answer = await client.post("/tasks/posts/invoke", json={"input": given})
            assert answer.json()["metadata"]["action"] == "review"


def _home(folder: Path) -> Path:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (folder / "prompts").mkdir()
    (folder / "migrations").symlink_to(MIGRATIONS)
    return folder
