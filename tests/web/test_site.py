"""The site without Kafka: who may ask, what is answered, and slow viewers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, CookieJar, web
from page_process import CATALOGUE, first

from stream.events import encode
from stream.settings import Settings
from stream.web.guard import HostRule
from stream.web.picture import Picture
from stream.web.site import Site
from stream.web.viewers import MAX_VIEWERS, MAX_WAITING, Viewer, Viewers, as_event


class Served:
    """A site of a known catalogue, on a free port."""

    def __init__(self) -> None:
        self.picture = Picture(Settings(), lambda: int(time.time() * 1000))
        for item in CATALOGUE:
            self.picture.items.take(item.item_id.encode(), encode(item))
        self.viewers = Viewers()
        self.is_ready = True
        self.site = Site(self.picture, self.viewers, None, lambda: self.is_ready)
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Served]:
        runner = web.AppRunner(self.site.application(HostRule("127.0.0.1")), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield self
        await runner.cleanup()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with Served().running() as served:
        yield served


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
        yield session


def from_page(served: Served) -> dict[str, str]:
    return {"Origin": served.url, "Content-Type": "application/json"}


def files(served: Served) -> Iterator[str]:
    yield from ("/", "/static/page.css", "/static/main.js", "/static/mark.svg", "/healthz")


async def test_every_answer_forbids_to_load_anything_from_elsewhere(
    served: Served, session: ClientSession
) -> None:
    for path in [*files(served), "/api/items", "/api/users", "/raw/nothing", "/nowhere", "/events"]:
        async with session.get(served.url + path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["X-Frame-Options"] == "DENY"


async def test_a_foreign_name_or_origin_is_refused(served: Served, session: ClientSession) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        async with session.get(served.url + "/", headers=headers) as answer:
            assert answer.status == 403
            assert "evil.example" in (await answer.json())["error"]


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1"])
async def test_only_the_page_itself_may_click(
    served: Served, session: ClientSession, origin: str | None
) -> None:
    headers = {"Content-Type": "application/json"} | ({"Origin": origin} if origin else {})
    body = b'{"event_id":"0123456789abcdef","item_id":"jazz-0"}'

    async with session.post(served.url + "/api/click", headers=headers, data=body) as answer:
        assert answer.status == 403
        assert "Origin" in await answer.text() or "not taken" in await answer.text()


async def test_a_form_of_another_kind_is_not_taken(served: Served, session: ClientSession) -> None:
    headers = from_page(served) | {"Content-Type": "text/plain"}
    async with session.post(served.url + "/api/visit", headers=headers, data=b"{}") as answer:
        assert answer.status == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"event_id":"short","item_id":"jazz-0"}',
        b'{"event_id":"0123456789abcdef"}',
        b'{"event_id":"0123456789abcdef","item_id":""}',
        b'{"event_id":"0123456789abcdef","item_id":"no-such-item"}',
        b'{"event_id":"0123456789abcdef","item_id":"jazz-0","rec":{"rec_id":1}}',
    ],
)
async def test_a_click_that_is_none_is_refused(
    served: Served, session: ClientSession, body: bytes
) -> None:
    headers = from_page(served)
    async with session.post(served.url + "/api/click", headers=headers, data=body) as answer:
        assert answer.status == 400


async def test_a_long_body_is_not_read(served: Served, session: ClientSession) -> None:
    headers, body = from_page(served), b"x" * 100_000
    async with session.post(served.url + "/api/click", headers=headers, data=body) as answer:
        assert answer.status == 413


async def test_a_page_that_only_shows_takes_no_clicks(
    served: Served, session: ClientSession
) -> None:
    headers = from_page(served)
    body = b'{"event_id":"0123456789abcdef","item_id":"jazz-0"}'
    async with session.post(served.url + "/api/click", headers=headers, data=body) as answer:
        assert answer.status == 403
        assert "--read-only" in (await answer.json())["error"]
    async with session.get(served.url + "/events") as answer:
        assert (await first(answer, ["hello"], lambda hello: True))["is_read_only"]


async def test_a_visitor_gets_a_cookie_that_scripts_and_other_sites_cannot_use(
    served: Served, session: ClientSession
) -> None:
    async with session.get(served.url + "/") as answer:
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    async with session.get(served.url + "/") as again:
        assert "Set-Cookie" not in again.headers


async def test_files_outside_the_page_are_not_served(
    served: Served, session: ClientSession
) -> None:
    for path in ("/static/../serve.py", "/static/%2e%2e%2fserve.py", "/static/serve.py"):
        async with session.get(served.url + path) as answer:
            assert answer.status == 404


async def test_health_waits_until_the_topics_are_read(
    served: Served, session: ClientSession
) -> None:
    served.is_ready = False
    async with session.get(served.url + "/healthz") as answer:
        assert answer.status == 503
    served.is_ready = True
    async with session.get(served.url + "/healthz") as answer:
        assert answer.status == 200


async def test_a_viewer_that_does_not_read_is_bounded_and_told_what_it_missed(
    served: Served,
) -> None:
    port = int(served.url.rsplit(":", 1)[1])
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(slow, b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        async with asyncio.timeout(10):
            assert b"200 OK" in await loop.sock_recv(slow, 100)
        viewer = next(iter(served.viewers._viewers))
        for number in range(2000):
            served.viewers.send(as_event("engine", {"number": number, "filling": "x" * 20_000}))
            assert len(viewer._waiting) <= MAX_WAITING
            await asyncio.sleep(0)
        received = b""
        async with asyncio.timeout(20):
            while b'"number":1999' not in received:
                received = received[-100_000:] + await loop.sock_recv(slow, 1 << 20)
                if b"event: dropped" in received:
                    break

    assert b"event: dropped" in received


async def test_more_viewers_than_there_is_room_for_are_refused(
    served: Served, session: ClientSession
) -> None:
    for _ in range(MAX_VIEWERS):
        assert served.viewers.add(Viewer("", ""))
    async with session.get(served.url + "/events") as answer:
        assert answer.status == 503
