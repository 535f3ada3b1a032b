"""Hand messages to those who look, each through a bounded queue of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from msgspec import Struct

from stream.events import encode

#: Messages that wait for one viewer; a slower one loses the oldest, and is told how many.
MAX_WAITING = 32
#: Viewers at once; another one is refused.
MAX_VIEWERS = 1000


def as_event(kind: str, message: object) -> bytes:
    """A server-sent event with a message as JSON."""
    return b"event: " + kind.encode() + b"\ndata: " + encode(message) + b"\n\n"


class Dropped(Struct, frozen=True):
    """A viewer was too slow for so many messages."""

    count: int


class Viewer:
    """One open page: `visitor` is the key of its own lists, `follows` that of the user it shows."""

    def __init__(self, visitor: str, follows: str) -> None:
        self.visitor = visitor
        self.follows = follows
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._has_news = asyncio.Event()

    def put(self, event: bytes) -> None:
        """Queue an event; the oldest goes where too many wait. Never blocks."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(event)
        self._has_news.set()

    async def next_events(self) -> bytes:
        """All that waits, at least one event; first how many were dropped, if any."""
        await self._has_news.wait()
        self._has_news.clear()
        lost = [as_event("dropped", Dropped(self._dropped))] if self._dropped else []
        events = b"".join([*lost, *self._waiting])
        self._waiting.clear()
        self._dropped = 0
        return events


class Viewers:
    """All open pages."""

    def __init__(self) -> None:
        self._viewers: set[Viewer] = set()

    def __len__(self) -> int:
        return len(self._viewers)

    def add(self, viewer: Viewer) -> bool:
        """Whether there was room for one more."""
        if len(self._viewers) >= MAX_VIEWERS:
            return False
        self._viewers.add(viewer)
        return True

    def remove(self, viewer: Viewer) -> None:
        """A page was closed."""
        self._viewers.discard(viewer)

    def followed(self) -> set[str]:
        """The users that are looked at."""
        return {viewer.follows for viewer in self._viewers if viewer.follows}

    def visitors(self) -> set[str]:
        """The visitors whose pages are open."""
        return {viewer.visitor for viewer in self._viewers}

    def send(self, event: bytes, to: Callable[[Viewer], bool] = lambda viewer: True) -> None:
        """Queue an event for all, or for those that `to` names."""
        for viewer in self._chosen(to):
            viewer.put(event)

    def _chosen(self, to: Callable[[Viewer], bool]) -> Iterator[Viewer]:
        return (viewer for viewer in tuple(self._viewers) if to(viewer))
