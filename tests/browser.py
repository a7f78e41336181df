"""A real browser for tests: Debian's Chromium, one for a module, with a context for each page."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Locator,
    Page,
    async_playwright,
    expect,
)

EXECUTABLE: Final = "/usr/bin/chromium"

ARGUMENTS: Final = (
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""So that it looks for nothing outside of this machine."""

PATIENCE_MS: Final = 40_000
"""Whatever takes longer never happens."""

expect.set_options(timeout=PATIENCE_MS)


def executable() -> str:
    """Where Chromium is. Without it the test fails in CI, and is skipped elsewhere."""
    found = shutil.which("chromium") or (EXECUTABLE if os.path.exists(EXECUTABLE) else None)
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Chromium is needed: apt-get install chromium")
    return found


@asynccontextmanager
async def chromium(*arguments: str) -> AsyncIterator[Browser]:
    """A browser."""
    path = executable()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])
        try:
            yield browser
        finally:
            await browser.close()


class Visitor:
    """Somebody with a browser of their own, on the page of a server."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.chat = page.locator("chat-room")
        self.text = self.chat.get_by_role("textbox", name="Message")
        self.messages = self.chat.locator(".message:not(.pending) .bubble")
        self.pending = self.chat.locator(".pending")
        self.state = self.chat.get_by_role("status")
        self.scroller = self.chat.get_by_role("region", name="Messages")
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"{error}"))
        page.on("console", self._said)
        page.on("dialog", self._asked)

    def _said(self, said: ConsoleMessage) -> None:
        if said.type == "error" and not said.text.startswith("WebSocket connection to"):
            self.problems.append(said.text)

    async def _asked(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    async def open(self, room: str = "lobby") -> "Visitor":
        """Goes to the page, and into a room."""
        await self.page.goto(f"{self.url}/#{room}")
        return await self.arrived(room)

    async def arrived(self, room: str) -> "Visitor":
        """Returns when it is in the room."""
        await expect(self.chat.get_by_role("heading", level=2)).to_have_text(room)
        await self.connected()
        return self

    async def lose_connection(self) -> None:
        """The browser is offline; the page has given its connection up, and tries to have another."""
        async with self.page.expect_event("websocket"):
            await self.page.context.set_offline(True)
            await expect(self.state).to_have_text("You\u2019re offline")

    async def connected(self) -> None:
        """Returns when there is a connection."""
        await expect(self.state).to_have_text("Connected")

    async def say(self, *texts: str) -> None:
        """Types each, and sends it."""
        for text in texts:
            await self.text.fill(text)
            await self.text.press("Enter")

    async def sees(self, *texts: str) -> None:
        """Returns when these are the last messages on the screen."""
        for place, text in enumerate(reversed(texts), 1):
            await expect(self.messages.nth(-place)).to_have_text(text)

    async def bodies(self) -> list[str]:
        """Of all messages that are in the document."""
        return await self.messages.all_inner_texts()

    def row(self, text: str) -> Locator:
        """The message with this text."""
        return self.messages.get_by_text(text, exact=True)

    async def scroll_to(self, text: str) -> None:
        """Scrolls back, as far as need be, to the message with this text."""
        row = self.row(text)
        while not await row.count():
            first = await self.messages.first.inner_text()
            await self.scroller.evaluate("box => box.scrollTop = 0")
            await expect(self.messages.first).not_to_have_text(first)
        await row.evaluate("node => node.scrollIntoView()")

    async def at_end(self) -> bool:
        """The newest message is on the screen."""
        gap = await self.scroller.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight")
        return bool(gap < 2)

    async def place(self, row: Locator) -> float:
        """How far below the upper edge of the messages `row` is."""
        box, frame = await row.bounding_box(), await self.scroller.bounding_box()
        assert box
        assert frame
        return box["y"] - frame["y"]


class House:
    """Opens pages, each in a context of its own, and closes them at the end."""

    def __init__(self, browser: Browser, stack: AsyncExitStack) -> None:
        self.browser = browser
        self._stack = stack
        self.visitors: list[Visitor] = []

    async def context(self, **options: Any) -> BrowserContext:
        """A profile of its own."""
        context = await self.browser.new_context(**{"viewport": {"width": 1280, "height": 720}} | options)
        context.set_default_timeout(PATIENCE_MS)
        self._stack.push_async_callback(context.close)
        return context

    async def visitor(self, url: str, name: str = "ann", **options: Any) -> Visitor:
        """Somebody who has said their name before; nobody who has not, if it is empty."""
        context = await self.context(**options)
        if name:
            await context.add_init_script(
                f"localStorage.getItem('chat name') ?? localStorage.setItem('chat name', '\"{name}\"')"
            )
        visitor = Visitor(await context.new_page(), url)
        self.visitors.append(visitor)
        return visitor


@asynccontextmanager
async def house(browser: Browser) -> AsyncIterator[House]:
    """For one test. Fails if a page had an error of its own."""
    async with AsyncExitStack() as stack:
        opened = House(browser, stack)
        yield opened
        for visitor in opened.visitors:
            assert visitor.problems == []
