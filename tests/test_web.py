"""The page and what it is made of, as HTTP gives them; tests/test_browser.py has them run."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from chatserver.app import build
from chatserver.config import Config
from tests.server import ROOT

STATIC = ROOT / "chatserver" / "static"
OTHERS = {
    "chat-room.js": "text/javascript",
    "page.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
PATHS = ["/", *(f"/static/{name}" for name in OTHERS)]

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Of a server with default settings."""
    async with serving() as client:
        yield client


def serving(**settings: object) -> Client:
    return TestClient(TestServer(build(Config(**{"store_url": "memory://"} | settings))))  # type: ignore[arg-type]


async def headers(client: Client, path: str = "/") -> dict[str, str]:
    async with client.get(path) as answer:
        assert answer.status == 200
        return {name.lower(): value for name, value in answer.headers.items()}


async def policy(**settings: object) -> dict[str, list[str]]:
    """The page's Content-Security-Policy, by directive."""
    async with serving(**settings) as client:
        directives = (await headers(client))["content-security-policy"].split(";")
    return {name: sources for name, *sources in (directive.split() for directive in directives)}


def test_every_file_is_known_here() -> None:
    assert {path.name for path in STATIC.iterdir()} == {"index.html", *OTHERS}


async def test_the_page(client: Client) -> None:
    async with client.get("/") as answer:
        assert (answer.content_type, answer.charset) == ("text/html", "utf-8")
        assert await answer.read() == (STATIC / "index.html").read_bytes()


@pytest.mark.parametrize("name", OTHERS)
async def test_what_it_is_made_of(client: Client, name: str) -> None:
    async with client.get(f"/static/{name}") as answer:
        assert answer.content_type == OTHERS[name]
        assert await answer.read() == (STATIC / name).read_bytes()
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("path", PATHS)
async def test_a_browser_asks_each_time_and_is_told_that_nothing_has_changed(client: Client, path: str) -> None:
    told = await headers(client, path)
    assert told["cache-control"] == "no-cache"
    assert told["x-content-type-options"] == "nosniff"
    for known, status in ((told["etag"], 304), (f'"other", W/{told["etag"]}', 304), ("*", 304), ('"other"', 200)):
        async with client.get(path, headers={"If-None-Match": known}) as answer:
            assert (answer.status, answer.headers["ETag"]) == (status, told["etag"])
            assert bool(await answer.read()) == (status == 200)
            assert answer.headers["Cache-Control"] == "no-cache"


async def test_other_bytes_have_another_etag(client: Client) -> None:
    assert len({(await headers(client, path))["etag"] for path in PATHS}) == len(PATHS)


@pytest.mark.parametrize("path", PATHS)
async def test_head_is_answered_and_nothing_that_would_change_it(client: Client, path: str) -> None:
    expected = await headers(client, path)
    async with client.head(path) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.headers["ETag"] == expected["etag"]
        assert answer.headers["Content-Length"] == expected["content-length"]
    for method in ("POST", "PUT", "DELETE"):
        async with client.request(method, path) as answer:
            assert answer.status == 405


@pytest.mark.parametrize(
    "path", ["/static/", "/static/nosuch.js", "/static/index.html", "/static/..%2Fpy.typed", "/static/%2e"]
)
async def test_there_is_nothing_else(client: Client, path: str) -> None:
    async with client.get(path) as answer:
        assert answer.status == 404


async def test_the_policy_allows_nothing_but_our_own() -> None:
    found = await policy()
    assert found.pop("require-trusted-types-for") == ["'script'"]
    assert {name for name, sources in found.items() if sources != ["'self'"]} == {
        "default-src",
        "base-uri",
        "form-action",
    }
    assert all(sources in (["'self'"], ["'none'"]) for sources in found.values())
    assert found.keys() >= {"script-src", "style-src", "connect-src", "img-src", "frame-ancestors"}


async def test_the_setting_says_whose_frames_may_show_it() -> None:
    assert (await policy())["frame-ancestors"] == ["'self'"]
    others = ("https://a.example", "http://b.example:8080")
    assert (await policy(frame_ancestors=others))["frame-ancestors"] == ["'self'", *others]
    assert (await policy(frame_ancestors=("*",)))["frame-ancestors"] == ["'self'", "*"]


async def test_without_the_feature_there_is_nothing() -> None:
    async with serving(features=("http", "centrifuge")) as client:
        for path in PATHS:
            async with client.get(path) as answer:
                assert answer.status == 404


async def test_the_files_are_read_once_and_not_by_a_request(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("chatserver.web._read", fail)
    await asyncio.gather(*(headers(client, path) for path in PATHS))


def test_the_page_has_no_script_or_style_in_it_and_asks_nobody_else() -> None:
    """Also for what only a policy would stop."""
    text = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", text) == []
    assert re.findall(r"(?:src|href)=\"(?!static/)([^\"]*)\"", text) == []
    for path in STATIC.iterdir():
        urls = set(re.findall(r"https?://[\w.]+", path.read_text()))
        assert urls <= {"http://www.w3.org"}, path.name


def test_nothing_of_others_becomes_markup() -> None:
    for path in STATIC.glob("*.js"):
        assert (
            re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", path.read_text())
            == []
        )


def test_the_element_is_one_module() -> None:
    assert (
        re.findall(r"^\s*(?:import\b(?!\.meta)|export .* from)", (STATIC / "chat-room.js").read_text(), re.MULTILINE)
        == []
    )
