"""Takes the pictures of the README from the running page: `python -m tests.pictures`.

They look best with the fonts Inter and Noto Color Emoji: `apt-get install fonts-inter fonts-noto-color-emoji`.
"""

import asyncio
import base64
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from playwright.async_api import Browser

from tests.browser import House, Visitor, chromium
from tests.server import ROOT, Server

Scheme: TypeAlias = Literal["light", "dark"]

FOLDER: Final = ROOT / "docs" / "images"
ROOMS: Final = ("design", "kitchen", "release-1.0", "lobby")
DESK, MOBILE = "Ann Keller", "Bob"
TALK: Final = (
    ("Ann Keller", "Good morning! The page is up: anybody with the address can join."),
    ("Ann Keller", "No accounts, no build, one process 🎉"),
    ("Bob", "Just tried it on the train. The tunnel ate my connection twice, and nothing was lost."),
    ("Zoë", "Same here. What I typed in between went out by itself, once."),
    ("ליאת", "ועברית עובדת מצוין, גם עם English באמצע 👌"),
    ("Bob", "And it goes back as far as you scroll. https://chat.example/#release-1.0 has all of last week."),
    ("Zoë", "👏"),
    ("Ann Keller", "Then we ship it."),
)

WIDE: Final[dict[str, Any]] = {"viewport": {"width": 1240, "height": 760}}
PHONE: Final[dict[str, Any]] = {
    "viewport": {"width": 360, "height": 700},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
OTHER: Final[dict[Scheme, Scheme]] = {"light": "dark", "dark": "light"}

LAYOUT: Final = """<!doctype html>
<style>
  body {{ margin: 0; width: 1400px; height: 880px; position: relative; background: transparent; }}
  img {{ position: absolute; border-radius: 14px; box-shadow: 0 2px 6px #0002, 0 16px 40px #0003; }}
  .wide {{ left: 24px; top: 24px; width: 1240px; }}
  .phone {{ right: 24px; bottom: 24px; width: 300px; border-radius: 26px; outline: 7px solid {frame}; }}
</style>
<img class="wide" src="data:image/png;base64,{wide}"><img class="phone" src="data:image/png;base64,{phone}">
"""


async def talk(house: House, url: str) -> dict[str, Visitor]:
    """Has everybody say something, in turn; they stay."""
    people: dict[str, Visitor] = {}
    for name in dict(TALK):
        people[name] = await house.visitor(url, name, **(PHONE if name == MOBILE else WIDE))
        for room in ROOMS:
            await people[name].open(room)
    for name, text in TALK:
        await people[name].say(text)
        await people[name].sees(text)
    return people


async def shot(visitor: Visitor, scheme: Scheme) -> str:
    """A picture of the page as somebody sees it, in base64."""
    await visitor.page.emulate_media(color_scheme=scheme)
    await visitor.sees(TALK[-1][1])
    await visitor.text.blur()
    return base64.b64encode(await visitor.page.screenshot(animations="disabled", caret="hide")).decode()


async def compose(browser: Browser, scheme: Scheme, wide: str, phone: str) -> None:
    """One picture of both."""
    page = await browser.new_page(viewport={"width": 1400, "height": 880})
    frame = "#0b0d10" if scheme == "light" else "#f4f5f7"
    await page.set_content(LAYOUT.format(wide=wide, phone=phone, frame=frame))
    await page.screenshot(path=FOLDER / f"web-{scheme}.png", omit_background=True)
    await page.close()


async def main() -> None:
    """Takes them all."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder)).start(LOG_LEVEL="warn")
        url = f"http://127.0.0.1:{server.port}"
        try:
            async with chromium() as browser, AsyncExitStack() as stack:
                house = House(browser, stack)
                people = await talk(house, url)
                for scheme, other in OTHER.items():
                    await compose(browser, scheme, await shot(people[DESK], scheme), await shot(people[MOBILE], other))
        finally:
            server.kill()


if __name__ == "__main__":
    asyncio.run(main())
