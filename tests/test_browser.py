"""The page in a real browser, against a server process."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, WebSocketRoute, expect

from chatserver.tokens import make_token
from tests import conftest
from tests.browser import PATIENCE_MS, House, Visitor, chromium, house
from tests.raw import RawClient
from tests.sdks import npm_packages
from tests.server import ROOT, Server
from tests.test_docs import block

SECRET = "a-secret-for-tests-of-thirty-two"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser(shared: Server) -> AsyncIterator[Browser]:
    """For it, the shared server is where the documentation says."""
    async with chromium(f"--host-resolver-rules=MAP localhost:8080 127.0.0.1:{shared.port}") as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def people(browser: Browser) -> AsyncIterator[House]:
    async with house(browser) as opened:
        yield opened


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def no_lost_exceptions() -> AsyncIterator[None]:
    """As everywhere, in the loop of the browser."""
    async for nothing in conftest.watch_for_lost_exceptions():
        yield nothing


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def no_raw_clients_left() -> AsyncIterator[None]:
    """As everywhere, in the loop of the browser."""
    yield
    await RawClient.clean_up()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that nobody stops; each test has a room of its own there."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start(LOG_LEVEL="warn", ALLOWED_ORIGINS="*", RATE_LIMIT="0")
    yield server
    server.kill()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


async def kept(server: Server, room: str) -> list[str]:
    """The bodies of all that was said."""
    found: list[str] = []
    after = 0
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url(server)}/api/rooms/{room}/messages?after={after}&limit=200") as answer:
                messages = (await answer.json())["messages"]
            if not messages:
                return found
            found += [message["data"]["body"] for message in messages]
            after = messages[-1]["offset"]


async def fill(server: Server, room: str, count: int, start: int = 1) -> None:
    """Has a client of `/ws` say `1` and so on."""
    client = await RawClient.connect(server.port, f"/ws?room={room}&name=robot")
    said = 0
    for number in range(start, start + count):
        client.say(json.dumps({"type": 2, "body": str(number)}))
    while said < count:
        text = await client.text()
        assert text
        said += json.loads(text)["type"] == 2
    await client.close()


async def test_two_browsers_and_a_raw_client_in_one_room(shared: Server, people: House) -> None:
    ann = await (await people.visitor(url(shared), "ann")).open("three")
    bob = await (await people.visitor(url(shared), "bob")).open("three")
    raw = await RawClient.connect(shared.port, "/ws?room=three&name=carol")
    await ann.say("hello")
    await bob.sees("hello")
    raw.say('{"type":2,"body":"from /ws"}')
    for one in (ann, bob):
        await one.sees("hello", "from /ws")
    await bob.say("well", "and\nthis")
    for one in (ann, bob):
        await one.sees("hello", "from /ws", "well", "and\nthis")
        await expect(one.pending).to_have_count(0)
    assert json.loads(await raw.text() or "")["body"] == "carol connected"
    heard = [json.loads(await raw.text() or "")["body"] for _ in range(4)]
    assert heard == ["hello", "from /ws", "well", "and\nthis"]
    names = ann.chat.locator(".message:not(.own).head .name")
    assert await names.all_inner_texts() == ["carol", "bob"]
    here = ann.chat.get_by_role("complementary", name="People here").get_by_role("listitem").locator("bdi")
    await expect(here).to_have_text(["ann", "bob", "carol"])
    await raw.close()
    await expect(here).to_have_text(["ann", "bob"])
    await expect(ann.chat.locator(".note").last).to_contain_text("carol")


async def test_a_reload_keeps_the_place(shared: Server, people: House) -> None:
    await fill(shared, "long", 400)
    ann = await (await people.visitor(url(shared))).open("long")
    await ann.sees("400")
    await ann.scroll_to("123")
    row = ann.row("123")
    before = await ann.place(row)
    await ann.text.fill("half a thought")
    await ann.page.goto(f"{url(shared)}/")  # the room is remembered, too
    await ann.arrived("long")
    await expect(row).to_be_visible()
    assert abs(await ann.place(row) - before) < 2
    await expect(ann.text).to_have_value("half a thought")
    await fill(shared, "long", 3, 401)
    await ann.chat.get_by_role("button", name="new messages").click()
    await ann.sees("400", "401", "402", "403")
    assert await ann.at_end()


JUMP = """box => new Promise((resolve) => {
    const bubbles = () => [...box.querySelectorAll('.bubble')];
    box.scrollTop = 0;
    const [first, second] = bubbles().map(({ textContent }) => textContent);
    const place = () => bubbles().find(({ textContent }) => textContent === second).getBoundingClientRect().top;
    const before = place();
    const look = () => {
        if (bubbles()[0].textContent === first) requestAnimationFrame(look);
        else resolve(Math.abs(place() - before));
    };
    look();
})"""
"""Scrolls to the upper end, waits for what comes before it, and tells by how much the rest has moved."""


async def test_old_messages_come_without_a_jump(shared: Server, people: House) -> None:
    await fill(shared, "jump", 200)
    ann = await (await people.visitor(url(shared))).open("jump")
    await ann.sees("200")
    while (await ann.bodies())[0] != "1":
        assert await ann.scroller.evaluate(JUMP) < 2
    assert await ann.bodies() == [str(number) for number in range(1, 201)]
    await expect(ann.chat.locator(".start")).to_contain_text("This is where it begins.")


async def test_five_thousand_messages(shared: Server, people: House) -> None:
    ann = await (await people.visitor(url(shared))).open("flood")
    await fill(shared, "flood", 5000)
    await ann.sees("4998", "4999", "5000")
    assert await ann.at_end()
    assert len(await ann.bodies()) <= 240
    for target in ("4600", "4000", "2500"):
        await ann.scroll_to(target)
        shown = [int(body) for body in await ann.bodies()]
        assert shown == list(range(shown[0], shown[0] + len(shown)))
        assert len(shown) <= 240
    await ann.say("and on")
    await ann.sees("4999", "5000", "and on")
    assert await ann.at_end()


async def test_the_server_is_killed_under_the_page(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn")
    ann, bob = [await (await people.visitor(url(server), name)).open() for name in ("ann", "bob")]
    said = []
    for turn in range(2):
        said += [f"{turn} before {number}" for number in range(5)]
        await ann.say(*said[-5:])
        server.kill()
        for one in (ann, bob):
            await expect(one.state).to_have_text("No connection, trying again…")
        said += [f"{turn} meanwhile {number}" for number in range(3)]
        await ann.say(*said[-3:])
        await expect(ann.pending.last).to_contain_text("Waiting for the connection")
        server.start(LOG_LEVEL="warn")
        for one in (ann, bob):
            await one.page.evaluate("dispatchEvent(new Event('online'))")  # or else a little later
            await one.connected()
            await one.sees(*said)
        await expect(ann.pending).to_have_count(0)
    assert await kept(server, "lobby") == said
    for one in (ann, bob):
        assert await one.bodies() == said


async def test_another_log_is_shown_anew_and_said_to_be(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn")
    ann = await (await people.visitor(url(server))).open()
    await ann.say("old")
    await ann.sees("old")
    server.kill()
    for path in server.folder.glob("chat.db*"):
        path.unlink()
    server.start(LOG_LEVEL="warn")
    await fill(server, "lobby", 2)
    await ann.sees("1", "2")
    assert await ann.bodies() == ["1", "2"]
    await expect(ann.chat.locator(".note")).to_contain_text("Not everything that you missed is kept.")


async def test_what_is_typed_offline_is_sent_once_when_the_link_is_back(shared: Server, people: House) -> None:
    ann, bob = [await (await people.visitor(url(shared), name)).open("offline") for name in ("ann", "bob")]
    await ann.lose_connection()
    await ann.say("one", "two")
    await bob.say("meanwhile")
    await bob.sees("meanwhile")
    await expect(ann.pending).to_have_count(2)
    await expect(ann.chat.get_by_text("What you write is kept")).to_be_visible()
    await ann.page.context.set_offline(False)
    for one in (ann, bob):
        await one.sees("meanwhile", "one", "two")
    await expect(ann.pending).to_have_count(0)
    assert await kept(shared, "offline") == ["meanwhile", "one", "two"]


async def test_a_broken_connection_leaves_the_reader_where_it_was(shared: Server, people: House) -> None:
    await fill(shared, "reading", 200)
    ann = await (await people.visitor(url(shared))).open("reading")
    await ann.sees("200")
    await ann.scroll_to("50")
    before = await ann.place(ann.row("50"))
    await ann.lose_connection()
    await fill(shared, "reading", 2, 201)
    await ann.page.context.set_offline(False)
    news = ann.chat.get_by_role("button", name="2 new messages")
    await expect(news).to_be_visible()
    assert abs(await ann.place(ann.row("50")) - before) < 2
    await news.click()
    await ann.sees("199", "200", "201", "202")


async def test_what_is_typed_offline_outlives_the_page(shared: Server, people: House) -> None:
    ann = await (await people.visitor(url(shared))).open("closed")
    await ann.page.context.set_offline(True)
    await ann.say("one", "two")
    await expect(ann.pending).to_have_count(2)
    context = ann.page.context
    await ann.page.close()
    await context.set_offline(False)
    again = await Visitor(await context.new_page(), url(shared)).open("closed")
    await again.sees("one", "two")
    await expect(again.pending).to_have_count(0)
    assert await kept(shared, "closed") == ["one", "two"]


async def test_a_message_whose_answer_is_lost_is_stored_once(shared: Server, people: House) -> None:
    ann = await people.visitor(url(shared))
    cut: list[str] = []

    def relay(page: WebSocketRoute) -> None:
        server = page.connect_to_server()

        async def forward(frame: str | bytes) -> None:
            if '"offset":1' in str(frame) and not cut:  # the message, as it comes back, or the answer
                cut.append(str(frame))
                await page.close(code=1013, reason="try again")
                await server.close()
            else:
                page.send(frame)

        server.on_message(forward)

    await ann.page.route_web_socket("**/connection/websocket", relay)
    await ann.open("once")
    await ann.say("once")
    await ann.sees("once")
    await expect(ann.pending).to_have_count(0)
    assert cut
    assert await kept(shared, "once") == await ann.bodies() == ["once"]


async def test_a_gap_is_filled_in_order(shared: Server, people: House) -> None:
    ann = await people.visitor(url(shared))

    def relay(page: WebSocketRoute) -> None:
        server = page.connect_to_server()
        server.on_message(lambda frame: pass_on(page, str(frame).split("\n")))

    def pass_on(page: WebSocketRoute, told: list[str]) -> None:  # what is told together comes in one frame
        left = [each for each in told if not ('"push"' in each and '"body":"2"' in each)]
        if left:
            page.send("\n".join(left))

    await ann.page.route_web_socket("**/connection/websocket", relay)
    await ann.open("gap")
    for number in range(1, 5):
        await fill(shared, "gap", 1, number)
    await ann.sees("1", "2", "3", "4")
    assert await ann.bodies() == ["1", "2", "3", "4"]


async def test_a_link_that_is_dead_is_noticed(shared: Server, people: House) -> None:
    ann = await people.visitor(url(shared))
    dead: list[bool] = []

    def relay(page: WebSocketRoute) -> None:
        server, silent = page.connect_to_server(), not dead
        server.on_message(lambda frame: None if silent and dead else page.send(frame))
        page.on_message(lambda frame: None if silent and dead else server.send(frame))

    await ann.page.clock.install()
    await ann.page.route_web_socket("**/connection/websocket", relay)
    await ann.open("dead")
    dead.append(True)
    await fill(shared, "dead", 1)
    await ann.page.clock.fast_forward(36_000)  # a heartbeat and ten seconds
    await ann.sees("1")  # by another link: how soon that is tried is left to chance


async def test_a_room_that_isnt_one_is_refused_in_words(shared: Server, people: House) -> None:
    ann = await (await people.visitor(url(shared))).open("fine")
    for room, problem in (
        ("no:such", "There is no such kind of room on this server."),
        ("a b", "Room: 1 to 128 of A-Z"),
    ):
        await ann.page.get_by_role("textbox", name="Join or create a room").fill(room)
        await ann.page.get_by_role("button", name="Join").click()
        await expect(ann.page.get_by_role("alert")).to_contain_text(problem)
        await ann.arrived("fine")
    assert ann.page.url.endswith("#fine")
    await ann.page.get_by_role("textbox", name="Join or create a room").fill("kitchen")
    await ann.page.keyboard.press("Enter")
    await ann.arrived("kitchen")
    assert ann.page.url.endswith("#kitchen")
    rooms = ann.page.get_by_role("navigation", name="Rooms").get_by_role("link")
    await expect(rooms).to_have_text(["lobby", "fine", "kitchen"])
    await ann.page.get_by_role("button", name="Remove fine from the list").focus()
    await ann.page.keyboard.press("Enter")
    await expect(rooms).to_have_text(["lobby", "kitchen"])


async def test_a_message_that_is_refused_can_be_sent_again_or_deleted(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn", MAX_BODY_BYTES="5")
    ann = await (await people.visitor(url(server))).open()
    await ann.say("too long", "short")
    await ann.sees("short")
    await expect(ann.pending).to_have_count(1)
    await expect(ann.pending).to_contain_text("Not sent. Body too long, at most 5 bytes.")
    await ann.chat.get_by_role("button", name="Delete").click()
    await expect(ann.pending).to_have_count(0)
    assert await kept(server, "lobby") == ["short"]


async def test_the_keyboard_is_enough(shared: Server, people: House) -> None:
    ann = await people.visitor(url(shared), "")
    page, keys = ann.page, ann.page.keyboard
    await page.goto(f"{ann.url}/#keys")
    await expect(page.get_by_role("textbox", name="Your name")).to_be_focused()
    await keys.type("Zoë")
    await keys.press("Enter")
    await ann.arrived("keys")
    await expect(ann.text).to_be_focused()
    await keys.type("first")
    await keys.press("Shift+Enter")
    await keys.type("line")
    await keys.press("Enter")
    await ann.sees("first\nline")
    await keys.press("Shift+Tab")
    await expect(ann.scroller).to_be_focused()
    await keys.press("Shift+Tab")
    await expect(ann.chat.get_by_role("button", name="here")).to_be_focused()
    await keys.press("Enter")
    people_here = ann.chat.get_by_role("complementary", name="People here")
    await expect(people_here).to_be_hidden()
    await keys.press("Enter")
    await expect(people_here).to_contain_text("Zoë")
    await keys.press("Escape")
    await expect(people_here).to_be_hidden()
    await keys.press("Shift+Tab")
    await expect(page.get_by_role("button", name="You are Zoë")).to_be_focused()
    await keys.press("Enter")
    await keys.press("Control+A")
    await keys.type("Zoe")
    await keys.press("Enter")
    await expect(page.get_by_role("button", name="You are Zoe")).to_be_visible()
    await ann.connected()
    await page.get_by_role("link", name="lobby").focus()
    await keys.press("Enter")
    await ann.arrived("lobby")


async def test_what_is_composed_isnt_sent_half(shared: Server, people: House) -> None:
    ann = await (await people.visitor(url(shared))).open("compose")
    await ann.text.fill("にほ")
    await ann.text.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    await expect(ann.text).to_have_value("にほ")
    await ann.text.press("Enter")
    await ann.sees("にほ")


async def test_screen_readers_hear_new_messages_and_not_old_ones(shared: Server, people: House) -> None:
    await fill(shared, "heard", 100)
    ann = await (await people.visitor(url(shared))).open("heard")
    await ann.sees("100")
    log = ann.chat.get_by_role("log", name="New messages")
    await ann.scroll_to("1")
    await fill(shared, "heard", 2, 101)
    await expect(log).to_have_text("robot: 101robot: 102")


PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


async def test_it_fits_a_phone(shared: Server, people: House) -> None:
    ann = await people.visitor(url(shared), "W" * 32, **PHONE)
    await ann.open("phone")
    bob = await (await people.visitor(url(shared), "M" * 32)).open("phone")
    texts = ["x" * 500, "https://example.org/" + "y" * 200, "مرحبا", "🎉", "a\nb"]
    await bob.say(*texts)
    await ann.sees(*texts)
    await ann.say(*texts)
    await ann.sees(*texts, *texts)
    await ann.page.locator("#menu").tap()
    await ann.page.get_by_role("textbox", name="Join or create a room").fill("z" * 128)
    await ann.page.keyboard.press("Enter")
    await ann.arrived("z" * 128)
    await expect(ann.page.get_by_role("navigation", name="Rooms")).to_be_hidden()
    await ann.open("phone")
    await ann.sees(*texts)
    sizes = await ann.page.evaluate(
        """() => {
            const root = document.querySelector('chat-room').shadowRoot;
            const box = root.querySelector('.scroller');
            const input = root.querySelector('textarea');
            return [document.documentElement.scrollWidth, box.scrollWidth, parseFloat(getComputedStyle(input).fontSize),
                    input.getBoundingClientRect().bottom];
        }"""
    )
    assert sizes[:2] == [360, 360]
    assert sizes[2] >= 16
    assert sizes[3] <= 640


async def test_nothing_that_others_write_becomes_anything_but_text(server: Server, people: House) -> None:
    """As a name, a body and a room, and as one's own name."""
    server.start(LOG_LEVEL="warn", TOKEN_HMAC_SECRET=SECRET, ANONYMOUS="on")
    payloads = (Path(__file__).parent / "payloads.txt").read_text().splitlines()
    assert len(payloads) >= 60
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        left = asyncio.Event()
        evil = [group.create_task(intrude(session, server, payload, left)) for payload in payloads]
        ann = await people.visitor(url(server))
        await ann.page.add_init_script("window.__x = 0")
        await ann.open()
        names = ann.chat.get_by_role("complementary", name="People here").get_by_role("listitem").locator("bdi")
        await expect(names).to_have_count(len(payloads) + 1)
        await ann.scroller.evaluate("box => box.scrollTop = 0")
        await expect(ann.messages).to_have_count(len(payloads))
        assert sorted(await ann.bodies()) == sorted(payloads)
        assert sorted(await names.all_inner_texts()) == sorted(["ann", *payloads])
        links = await ann.chat.locator(".bubble a").evaluate_all("all => all.map(({protocol}) => protocol)")
        assert links
        assert set(links) <= {"http:", "https:"}
        left.set()
        for payload in payloads[::8]:
            await ann.page.evaluate("room => { location.hash = encodeURIComponent(room); }", payload)
            await ann.page.wait_for_url("**/#lobby")  # it is refused
        for payload in payloads:
            await ann.page.evaluate("room => { document.querySelector('chat-room').room = room; }", payload)
            await expect(ann.chat.get_by_role("heading", level=2)).to_have_text(payload)
        for payload in payloads[::8]:
            await ann.page.locator("#me").click()
            await ann.page.get_by_role("textbox", name="Your name").fill(payload[:32].strip())
            await ann.page.keyboard.press("Enter")
            await expect(ann.page.locator("#me bdi")).to_have_text(payload[:32].strip())
        assert await ann.page.evaluate("window.__x") == 0
        assert len(ann.page.context.pages) == len(ann.page.frames) == 1
    assert all(task.done() for task in evil)


async def intrude(session: aiohttp.ClientSession, server: Server, payload: str, left: asyncio.Event) -> None:
    """Somebody who is called like what it says, and stays."""
    token = make_token(SECRET, payload, seconds=600, info=json.dumps({"name": payload}))
    async with session.ws_connect(f"{url(server)}/connection/websocket") as connection:
        data = {"room": "lobby", "body": payload}
        for command in (
            {"connect": {"token": token}},
            {"subscribe": {"channel": "lobby"}},
            {"rpc": {"method": "send", "data": data}},
        ):
            await connection.send_json({"id": 1, **command})
        reading = asyncio.create_task(read(connection))
        await left.wait()
        reading.cancel()


async def read(connection: aiohttp.ClientWebSocketResponse) -> None:
    """Answers pings."""
    async for frame in connection:
        if frame.data == "{}":
            await connection.send_str("{}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(scheme: str, shared: Server, people: House) -> None:
    # What is just appearing has less contrast than it will have.
    ann = await people.visitor(url(shared), "", color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    await ann.page.goto(f"{ann.url}/#axe")
    await ann.page.add_script_tag(path=str(npm_packages() / "node_modules" / "axe-core" / "axe.min.js"))
    assert await serious(ann) == []  # the question for a name
    await ann.page.get_by_role("textbox", name="Your name").fill("ann")
    await ann.page.keyboard.press("Enter")
    await ann.arrived("axe")
    await ann.say("see https://example.org/", "🎉")
    await ann.sees("see https://example.org/", "🎉")
    await fill(shared, "axe", 2)
    await ann.sees("1", "2")
    assert await serious(ann) == []
    await ann.page.context.set_offline(True)
    await expect(ann.state).to_have_text("You\u2019re offline")
    await ann.say("later")
    await expect(ann.pending).to_be_visible()
    assert await serious(ann) == []


async def serious(visitor: Visitor) -> list[str]:
    """What axe-core has to say."""
    found = await visitor.page.evaluate("() => axe.run()")
    return [
        f"{problem['id']}: {node['target']} {node['failureSummary']}"
        for problem in found["violations"]
        for node in problem["nodes"]
        if problem["impact"] in ("serious", "critical")
    ]


EMBED = block((ROOT / "docs" / "embed.md").read_text(), "html")


@asynccontextmanager
async def elsewhere(text: str, **headers: str) -> AsyncIterator[str]:
    """The address of a page with this text, of another origin than the server."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def nothing(request: web.Request) -> web.Response:
        return web.Response(status=204)

    app = web.Application()
    app.router.add_get("/", answer)
    app.router.add_get("/favicon.ico", nothing)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def test_the_page_shown_is_a_short_one() -> None:
    assert len([line for line in EMBED.splitlines() if line.strip()]) <= 11


async def test_the_page_shown_has_a_chat(shared: Server, people: House) -> None:
    ann = await (await people.visitor(url(shared))).open("support")
    async with elsewhere(EMBED) as address:
        guest = await people.visitor(address)
        await guest.page.goto(address)
        await guest.arrived("support")
        await ann.say("What can I do for you?")
        await guest.sees("What can I do for you?")
        async with guest.page.expect_console_message(lambda said: said.text == "Visitor Nothing, thanks"):
            await guest.say("Nothing, thanks")
        await ann.sees("What can I do for you?", "Nothing, thanks")
        await expect(ann.chat.locator(".message:not(.own) .name")).to_have_text(["Visitor"])
        colour = "node => getComputedStyle(node).backgroundColor"
        assert await guest.chat.locator(".own .bubble").evaluate(colour) == "rgb(139, 47, 107)"


TELL = """
    for (const name of ['message', 'presence', 'state', 'error', 'token']) {
        addEventListener(`chat-${name}`, ({ detail }) => tell(name, detail));
    }
"""
OWN = (
    """<!doctype html><title>x</title><script type="module" src="http://localhost:8080/static/chat-room.js"></script>"""
)


class Told:
    """What the element tells its page."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    def hear(self, name: str, detail: dict[str, Any]) -> None:
        self.events.put_nowait((name, detail))

    async def next(self, wanted: str, **expected: Any) -> None:
        """Returns at the next such event, with at least that in its detail."""
        passed: list[Any] = []
        try:
            async with asyncio.timeout(PATIENCE_MS / 1000):
                while True:
                    name, detail = await self.events.get()
                    if name == wanted and detail | expected == detail:
                        return
                    passed.append((name, detail))
        except TimeoutError:
            raise AssertionError(f"no {wanted} {expected} among {passed}") from None


async def test_a_page_with_a_strict_policy_sets_tokens_and_hears_what_happens(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn", TOKEN_HMAC_SECRET=SECRET, ALLOWED_ORIGINS="*")
    policy = f"default-src 'none'; script-src http://localhost:8080; connect-src ws://127.0.0.1:{server.port}"
    async with elsewhere(OWN, **{"Content-Security-Policy": policy}) as address:
        page, told = (await people.visitor(address)).page, Told()
        await page.expose_function("tell", told.hear)
        await page.add_init_script(TELL)
        await page.goto(address)
        await page.evaluate(
            "src => document.body.append(Object.assign(document.createElement('chat-room'), { src, room: 'r' }))",
            f"http://127.0.0.1:{server.port}/",
        )
        await told.next("error", room="r", code=3507, text="Nobody without a token is let in here.", refused=True)
        await told.next("token", reason="missing")
        for key, seconds, reason in (("x" * 32, 60, "refused"), (SECRET, -60, "expired")):
            await show(page, make_token(key, "eve", seconds=seconds))
            await told.next("token", reason=reason)
        await show(page, make_token(SECRET, "eve", seconds=3, info='{"name":"Eve"}'))
        await told.next("state", room="r", state="connected", text="Connected")
        await told.next("presence", room="r", count=1, people=[{"name": "Eve", "user": "eve"}])
        await told.next("token", reason="expiring")
        await show(page, make_token(SECRET, "eve", seconds=3600))
        await page.evaluate("() => document.querySelector('chat-room').send('hi')")
        name, detail = await told.events.get()  # a newer token doesn't cost the connection, so nothing is told before
        assert (name, detail["author"], detail["body"], detail["own"]) == ("message", "Eve", "hi", True)


async def show(page: Page, token: str) -> None:
    await page.evaluate("token => { document.querySelector('chat-room').token = token; }", token)


async def test_where_nobody_reads_history_one_can_chat_all_the_same(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn", NAMESPACES='{"":{"history":"nobody","presence":"nobody"}}')
    ann, bob = [await (await people.visitor(url(server), name)).open() for name in ("ann", "bob")]
    await ann.say("one", "two")
    await bob.say("three")  # perhaps before ann's page has heard that "one" is stored, and says "two"
    for one in (ann, bob):
        await expect(one.messages).to_have_count(3)
        assert sorted(await one.bodies()) == ["one", "three", "two"]
        await expect(one.pending).to_have_count(0)
    assert await ann.bodies() == await bob.bodies()
    await expect(ann.chat.get_by_role("button", name="here")).to_be_hidden()


async def hears_three(ann: Visitor, server: Server) -> None:
    """Two messages have reached the page while it came in; it shows them, and the next."""
    await ann.arrived("lobby")
    await fill(server, "lobby", 1, 3)
    await ann.sees("1", "2", "3")
    assert await ann.bodies() == ["1", "2", "3"]


async def test_what_is_said_before_nobody_may_read_history_is_shown(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn", NAMESPACES='{"":{"history":"nobody"}}')
    ann = await people.visitor(url(server))
    asked, told = asyncio.Event(), asyncio.Event()

    def relay(page: WebSocketRoute) -> None:
        upstream = page.connect_to_server()

        async def forward(frame: str | bytes) -> None:
            if '"method":"history"' in str(frame):
                asked.set()
                await told.wait()
            upstream.send(frame)

        page.on_message(forward)

    await ann.page.route_web_socket("**/connection/websocket", relay)
    await ann.page.goto(url(server))
    await asked.wait()
    await fill(server, "lobby", 2)
    told.set()
    await hears_three(ann, server)


async def test_what_comes_in_one_frame_with_the_answer_is_shown(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn", NAMESPACES='{"":{"history":"nobody"}}')
    ann = await people.visitor(url(server))
    held: list[str] = []
    answered, together = asyncio.Event(), asyncio.Event()

    def relay(page: WebSocketRoute) -> None:
        upstream = page.connect_to_server()

        def forward(frame: str | bytes) -> None:
            if not together.is_set() and (held or '"subscribe"' in str(frame)):
                held.append(str(frame))
                answered.set()
                if '"body":"2"' in str(frame):
                    together.set()
                    page.send("\n".join(held))
            else:
                page.send(frame)

        upstream.on_message(forward)

    await ann.page.route_web_socket("**/connection/websocket", relay)
    await ann.page.goto(url(server))
    await answered.wait()
    await fill(server, "lobby", 2)
    await together.wait()
    await hears_three(ann, server)


async def test_what_is_kept_nowhere_is_shown_and_hides_nothing(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn", API_TOKEN="t" * 32)
    ann = await (await people.visitor(url(server))).open()
    await fill(server, "lobby", 1)
    await ann.sees("1")
    passing = {"channel": "lobby", "data": {"body": "passing"}, "skip_history": True}
    async with aiohttp.ClientSession(headers={"X-API-Key": "t" * 32}) as session:
        for _ in range(2):
            async with session.post(f"{url(server)}/api/publish", json=passing) as answer:
                assert answer.status == 200
    await ann.sees("1", "passing", "passing")
    await fill(server, "lobby", 2, 2)
    await ann.sees("1", "passing", "passing", "2", "3")
    assert await ann.bodies() == ["1", "passing", "passing", "2", "3"]


async def test_a_low_limit_costs_time_and_nothing_else(server: Server, people: House) -> None:
    server.start(LOG_LEVEL="warn", RATE_LIMIT="2")
    ann = await (await people.visitor(url(server))).open()
    await ann.say("one", "two", "three")
    await ann.sees("one", "two", "three")
    await expect(ann.pending).to_have_count(0)
    await expect(ann.chat.get_by_role("button", name="1 here")).to_be_visible()
    assert await kept(server, "lobby") == ["one", "two", "three"]


async def test_what_a_program_says_has_its_name(shared: Server, people: House) -> None:
    ann = await (await people.visitor(url(shared))).open("program")
    async with aiohttp.ClientSession() as session:
        said = {"body": "deployed", "user": "robot"}
        async with session.post(f"{url(shared)}/api/rooms/program/messages", json=said) as answer:
            assert answer.status == 201
    await ann.sees("deployed")
    await expect(ann.chat.locator(".message .name")).to_have_text(["robot"])
