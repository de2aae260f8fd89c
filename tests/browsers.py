"""A real browser, and what a person who cannot see or use a mouse would find wrong with a page."""

import os
import shutil

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WCAG = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
expect.set_options(timeout=30_000)


async def sign_in(page: Page, url: str, key: str) -> None:
    """Type the key, and wait for the desk."""
    await page.goto(f"{url}/desk")
    await expect(page.get_by_label("Your key")).to_be_focused()
    await page.keyboard.type(key)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Nothing on your desk")).to_be_visible()
    # Keys act once the scripts have run.
    await page.wait_for_load_state()


async def faults(page: Page) -> list[str]:
    """What axe-core finds (https://github.com/dequelabs/axe-core), in light and in dark."""
    found = []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        said = (await Axe().run(page, options=WCAG)).response["violations"]
        found += [f"{scheme}: {each['id']} at {[node['target'] for node in each['nodes']]}" for each in said]
    return found


async def fits_at_400_percent(page: Page) -> None:
    """A window of 1280 pixels at 400 % is 320 wide: one column, and nothing to scroll sideways."""
    before = page.viewport_size
    await page.set_viewport_size({"width": 320, "height": 640})
    widths = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]
    assert before is not None
    await page.set_viewport_size(before)
