"""A real browser for tests: the machine's own Chromium, driven by Playwright."""

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

LONGEST_WAIT_MS = 20_000

_DROP = """([zone, files]) => {
    const carried = new DataTransfer();
    for (const [name, base64] of files) {
        const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
        carried.items.add(new File([bytes], name));
    }
    for (const event of ["dragover", "drop"])
        zone.dispatchEvent(new DragEvent(event, {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; without one the test is skipped, unless REQUIRE_CHROMIUM=1 says there is one."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        assert os.environ.get("REQUIRE_CHROMIUM") != "1", "no Chromium was found; apt-get install chromium"
        pytest.skip("no Chromium was found")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextmanager
def clean_tab(browser: Browser) -> Iterator[Page]:
    """A tab with a session of its own; nothing may be thrown or refused in it, nor asked of another host."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.set_default_timeout(LONGEST_WAIT_MS)
    expect.set_options(timeout=LONGEST_WAIT_MS)
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if _unexpected(message) else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url) if _elsewhere(request.url) else None)
    yield tab
    context.close()
    assert complaints == []


def drop(zone: Locator, files: list[Path]) -> None:
    """Let files fall onto an element, as from a folder."""
    carried = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
    zone.page.evaluate(_DROP, [zone.element_handle(), carried])


def _unexpected(message: ConsoleMessage) -> bool:
    """Whatever the browser complains of, but for answers that are no success: those are the test's own."""
    return message.type in {"error", "warning"} and "Failed to load resource" not in message.text


def _elsewhere(address: str) -> bool:
    return urlsplit(address.removeprefix("blob:")).hostname != "127.0.0.1"
