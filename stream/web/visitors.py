"""Know a visitor by a cookie, hold him to a rate, and send his events: all that the page writes."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from mode import Service
from msgspec import UNSET

from stream.events import RecommendationReference, UserEvent, encode
from stream.web.picture import PAGE_SOURCE

COOKIE = "driftline_visitor"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,64}")
_START_TIMEOUT_S = 20.0
_SEND_TIMEOUT_S = 5.0


def new_token() -> str:
    """A secret that makes its holder a visitor."""
    return secrets.token_urlsafe(18)


def visitor_of(token: str | None) -> str | None:
    """The user id of a cookie's holder; None where it is no token.

    The id is shown to everybody, so it does not give the cookie away that would let others click
    for this visitor.
    """
    if token is None or not _TOKEN.fullmatch(token):
        return None
    return "visitor-" + hashlib.blake2b(token.encode(), digest_size=5).hexdigest()


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class RateLimit:
    """Token buckets, one a visitor and one for all: bursts are allowed, floods are not."""

    #: Visitors whose buckets are kept; the longest unseen one starts anew.
    MAX_VISITORS = 10_000

    def __init__(
        self,
        per_visitor_s: float = 4.0,
        visitor_burst: float = 12.0,
        in_all_s: float = 100.0,
        all_burst: float = 300.0,
    ) -> None:
        self._visitor_rate, self._visitor_burst = per_visitor_s, visitor_burst
        self._rate, self._burst = in_all_s, all_burst
        self._all: _Bucket | None = None
        self._visitors: OrderedDict[str, _Bucket] = OrderedDict()

    def allows(self, visitor: str, now_s: float) -> bool:
        """Whether one more event of this visitor may go; if so it counts."""
        own = self._visitors.pop(visitor, None) or _Bucket(self._visitor_burst, now_s)
        self._visitors[visitor] = own
        if len(self._visitors) > self.MAX_VISITORS:
            self._visitors.popitem(last=False)
        if self._all is None:
            self._all = _Bucket(self._burst, now_s)
        _fill(own, self._visitor_rate, self._visitor_burst, now_s)
        _fill(self._all, self._rate, self._burst, now_s)
        if own.tokens < 1 or self._all.tokens < 1:
            return False
        own.tokens -= 1
        self._all.tokens -= 1
        return True


def _fill(bucket: _Bucket, rate: float, burst: float, now_s: float) -> None:
    bucket.tokens = min(burst, bucket.tokens + rate * max(now_s - bucket.at_s, 0.0))
    bucket.at_s = now_s


class NotSentError(Exception):
    """Kafka did not take an event in time."""


class EventSender(Service):  # type: ignore[misc]
    """Puts visitors' events on `user-events`, under the visitor's key."""

    def __init__(self, bootstrap: str, topic: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._bootstrap = bootstrap
        self._topic = topic
        self._producer: Any = None

    async def on_start(self) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            acks="all",
            request_timeout_ms=int(_SEND_TIMEOUT_S * 1000),
        )
        await asyncio.wait_for(self._producer.start(), _START_TIMEOUT_S)

    async def on_stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def send(self, event: UserEvent) -> None:
        """Send, and wait for Kafka's acknowledgement; raises NotSentError without it."""
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await self._producer.send_and_wait(
                    self._topic, key=str(event.user_id).encode(), value=encode(event)
                )
        except (KafkaError, TimeoutError) as error:
            raise NotSentError(str(error)) from error


def visitor_event(
    visitor: str,
    event_id: str,
    now_ms: int,
    item_id: str | None,
    rec: RecommendationReference | None,
) -> UserEvent:
    """A visit, or with an item a click."""
    return UserEvent(
        event_id=event_id,
        type="visit" if item_id is None else "click",
        event_time=now_ms,
        user_id=visitor,
        item_id=UNSET if item_id is None else item_id,
        rec=UNSET if rec is None else rec,
        source=PAGE_SOURCE,
        schema="driftline.event/1",
    )
