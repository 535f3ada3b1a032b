"""Answer the requests of the page: files, server-sent events, items, users, messages, clicks."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Annotated, TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Struct, UnsetType

from stream.events import Id, RecommendationReference, encode
from stream.web.guard import HostRule, guard, guard_headers
from stream.web.picture import Picture
from stream.web.told import (
    engine_figures,
    rate_figures,
    shown_user,
    user_lines,
    your_list,
)
from stream.web.viewers import Viewer, Viewers, as_event
from stream.web.visitors import (
    COOKIE,
    EventSender,
    NotSentError,
    RateLimit,
    new_token,
    visitor_event,
    visitor_of,
)

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
#: A viewer that takes nothing for so long is cut off.
_VIEWER_PATIENCE_S = 30.0
_MAX_BODY_BYTES = 4096
_MAX_OFFERED = 24
_MAX_USER_LINES = 40
_COOKIE_LIFETIME_S = 30 * 86_400
_REC_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Visit(Struct, frozen=True):
    """The visitor is here. The page makes the ids of events: one that is sent twice counts once."""

    event_id: Annotated[str, Meta(pattern="^[A-Za-z0-9-]{16,64}$")]


class Click(Visit, frozen=True):
    """The visitor takes an item, `rec` where it stood in a list."""

    item_id: Id
    rec: RecommendationReference | UnsetType = UNSET


class Hello(Struct, frozen=True):
    """What an opened page must know."""

    visitor: str
    is_read_only: bool
    categories: list[str]
    follows: str


T = TypeVar("T", bound=Struct)

_decode_visit = msgspec.json.Decoder(Visit).decode
_decode_click = msgspec.json.Decoder(Click).decode


class Site:
    """The requests' handlers. `sender` is None where the page may only read."""

    def __init__(
        self,
        picture: Picture,
        viewers: Viewers,
        sender: EventSender | None,
        is_ready: Callable[[], bool],
        limit: RateLimit | None = None,
    ) -> None:
        self._picture = picture
        self._viewers = viewers
        self._sender = sender
        self._is_ready = is_ready
        self._limit = limit or RateLimit()
        self._files = _static_files()

    def application(self, rule: HostRule) -> web.Application:
        """The site, behind its guard."""
        app = web.Application(middlewares=[guard(rule)], client_max_size=_MAX_BODY_BYTES)
        app.router.add_get("/", self._index)
        app.router.add_get("/static/{name}", self._file)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/events", self._stream)
        app.router.add_get("/api/items", self._items)
        app.router.add_get("/api/users", self._users)
        app.router.add_get("/raw/{rec_id}", self._raw)
        app.router.add_post("/api/visit", self._visit)
        app.router.add_post("/api/click", self._click)
        return app

    async def _index(self, request: web.Request) -> web.Response:
        response = _file_response(request, self._files["index.html"])
        if visitor_of(request.cookies.get(COOKIE)) is None:
            response.set_cookie(
                COOKIE, new_token(), max_age=_COOKIE_LIFETIME_S, httponly=True, samesite="Strict"
            )
        return response

    async def _file(self, request: web.Request) -> web.Response:
        found = self._files.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="there is no such file")
        return _file_response(request, found)

    async def _health(self, request: web.Request) -> web.Response:
        if self._is_ready():
            return _json({"status": "ok"})
        return _json({"status": "reading the topics"}, status=503)

    async def _items(self, request: web.Request) -> web.Response:
        query = request.query
        seed = query.get("seed", "0")
        offered = self._picture.items.offer(
            _MAX_OFFERED,
            query.get("category", "")[:128],
            query.get("words", "")[:100],
            int(seed) if seed.isascii() and seed.isdigit() and len(seed) < 12 else 0,
        )
        return _json({"items": offered, "categories": self._picture.items.categories()})

    async def _users(self, request: web.Request) -> web.Response:
        words = request.query.get("words", "")[:100]
        return _json({"users": user_lines(self._picture, words, _MAX_USER_LINES)})

    async def _raw(self, request: web.Request) -> web.Response:
        rec_id = request.match_info["rec_id"]
        told = self._picture.raw.pretty(rec_id) if _REC_ID.fullmatch(rec_id) else None
        if told is None:
            return _json({"error": "this list is not kept any more"}, status=404)
        return web.Response(body=told, content_type="application/json", charset="utf-8")

    async def _visit(self, request: web.Request) -> web.Response:
        body = await _body(request, _decode_visit)
        return await self._send(request, body.event_id, None, None)

    async def _click(self, request: web.Request) -> web.Response:
        body = await _body(request, _decode_click)
        if body.item_id not in self._picture.items:
            return _json({"error": "there is no such item"}, status=400)
        rec = None if body.rec is UNSET else body.rec
        return await self._send(request, body.event_id, body.item_id, rec)

    async def _send(
        self,
        request: web.Request,
        event_id: str,
        item_id: str | None,
        rec: RecommendationReference | None,
    ) -> web.Response:
        if self._sender is None:
            return _json({"error": "this page only shows: it was started with --read-only"}, 403)
        visitor = visitor_of(request.cookies.get(COOKIE))
        if visitor is None:
            return _json({"error": "no visitor: load the page first"}, 403)
        if not self._limit.allows(visitor, time.monotonic()):
            return _json({"error": "too many clicks: wait a second"}, 429)
        event = visitor_event(visitor, event_id, time.time_ns() // 1_000_000, item_id, rec)
        try:
            await self._sender.send(event)
        except NotSentError as error:
            return _json({"error": f"Kafka did not take the event: {error}"}, 503)
        return _json({"event_id": event_id, "event_time": event.event_time}, 202)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        visitor = visitor_of(request.cookies.get(COOKIE)) or ""
        viewer = Viewer(visitor, request.query.get("user", "")[:600])
        if not self._viewers.add(viewer):
            return _json({"error": "too many pages are open"}, 503)
        try:
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
            )
            await guard_headers(response).prepare(request)
            self._greet(viewer)
            while True:
                events = await viewer.next_events()
                async with asyncio.timeout(_VIEWER_PATIENCE_S):
                    await response.write(events)
        except (ConnectionError, TimeoutError):
            return response
        finally:
            self._viewers.remove(viewer)

    def _greet(self, viewer: Viewer) -> None:
        """All that there is to show, to a page that has just been opened."""
        picture, now_ms = self._picture, time.time_ns() // 1_000_000
        hello = Hello(
            viewer.visitor, self._sender is None, picture.items.categories(), viewer.follows
        )
        viewer.put(as_event("hello", hello))
        viewer.put(as_event("you", your_list(picture, viewer.visitor)))
        viewer.put(as_event("engine", engine_figures(picture, now_ms, len(self._viewers))))
        viewer.put(as_event("rates", rate_figures(picture)))
        followed = picture.users.get(viewer.follows)
        if followed is not None:
            viewer.put(as_event("user", shown_user(picture, followed)))


async def _body(request: web.Request, decode: Callable[[bytes], T]) -> T:
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="wanted application/json")
    try:
        return decode(await request.read())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise web.HTTPBadRequest(text=str(error)) from error


def _json(message: object, status: int = 200) -> web.Response:
    return web.Response(
        body=encode(message),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _static_files() -> dict[str, tuple[bytes, str, str]]:
    """Name -> (content, content type, entity tag) of all that the package brings for browsers."""
    found = {}
    for entry in _entries():
        content = entry.read_bytes()
        tag = hashlib.blake2b(content, digest_size=12).hexdigest()
        found[entry.name] = (content, _TYPES[entry.name.rsplit(".", 1)[-1]], tag)
    return found


def _entries() -> Iterable[resources.abc.Traversable]:
    folder = resources.files("stream.web").joinpath("static")
    return (entry for entry in folder.iterdir() if entry.name.rsplit(".", 1)[-1] in _TYPES)


def _file_response(request: web.Request, found: tuple[bytes, str, str]) -> web.Response:
    content, kind, tag = found
    if any(each.value == tag for each in request.if_none_match or ()):
        response = web.Response(status=304)
    else:
        response = web.Response(body=content, content_type=kind, charset="utf-8")
    response.etag = tag
    response.headers["Cache-Control"] = "no-cache"
    return response
