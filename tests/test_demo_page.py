"""What `make demo` promises a visitor: open the printed link, sign in, decide, and see the caller hear of it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from browsers import faults, fits_at_400_percent, sign_in
from playwright.async_api import Browser, Page, expect
from stack import ROOT

# It loads the real model, which takes a minute on a busy machine: `make prove-reviews` sets it.
pytestmark = pytest.mark.skipif("PROVE_DEMO" not in os.environ, reason="`make prove-reviews` runs it")
ACTS = (("d", "Delivered."), ("b", "Blocked."), ("b", "Blocked."))


class Printed:
    """The lines of a process, as they come."""

    def __init__(self, out: asyncio.StreamReader) -> None:
        self._out, self.lines = out, list[str]()

    async def until(self, start: str) -> str:
        """The next line that begins like this."""
        while True:
            line = (await self._out.readline()).decode()
            assert line, "\n".join(self.lines)
            self.lines.append(line.rstrip())
            if line.startswith(start):
                return self.lines[-1]


def _hear_ctrl_c() -> None:
    """A shell's background job ignores it, and its children do; a terminal's does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@asynccontextmanager
async def demo(folder: Path) -> AsyncIterator[Printed]:
    """`gateway demo` as in a terminal, until Ctrl-C."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
    env |= {"GATEWAY_HOME": str(ROOT), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = (sys.executable, "-m", "gateway", "demo")
    running = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, preexec_fn=_hear_ctrl_c
    )
    try:
        assert running.stdout is not None
        yield Printed(running.stdout)
    finally:
        running.send_signal(signal.SIGINT)
        await running.wait()


@pytest.mark.timeout(900)
async def test_three_held_messages_of_the_demo_are_decided(tmp_path: Path, chromium: Browser) -> None:
    """By the printed link and key, with the keyboard: each leaves the queue, and each outcome arrives by webhook."""
    async with demo(tmp_path) as printed:
        url = (await printed.until("http://")).removesuffix("/desk")
        key = await printed.until("gk_")
        page = await (await chromium.new_context(viewport={"width": 1280, "height": 860})).new_page()
        await sign_in(page, url, key)
        waiting = await _waiting(page)
        await page.keyboard.press("n")
        for number, (act, said) in enumerate(ACTS, 1):
            await expect(page.locator("article:not([hidden])")).to_have_count(1)
            await expect(page.locator("#ahead")).to_have_count(1)
            await page.keyboard.press("r")
            await expect(page.get_by_role("group", name="The text")).to_be_focused()
            if number == 1:
                assert await faults(page) == []
                await fits_at_400_percent(page)
                await page.emulate_media(color_scheme="light")
                await page.screenshot(path=os.environ.get("SCREENSHOT", tmp_path / "page.png"), caret="initial")
            await page.keyboard.press(act)
            await expect(page.get_by_role("status")).to_have_text(said)
            await expect(page.get_by_role("button", name="Reveal")).to_be_visible()
            # One is on the desk, and one was leased ahead of it.
            await expect(page.get_by_text(f"Waiting: {waiting - number - 1}")).to_be_visible()
        heard = [await printed.until("outcome received: ") for _ in ACTS]
    assert sorted(line.split()[2] for line in heard) == ["block", "block", "deliver"]


async def _waiting(page: Page) -> int:
    text = await page.get_by_text("Waiting: ").text_content()
    return int((text or "").split()[-1])
