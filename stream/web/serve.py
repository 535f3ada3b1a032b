"""Run the live page as a process: read the topics, serve what they tell, until it is stopped."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvloop
from aiohttp import web
from aiokafka.errors import KafkaError
from mode import Service

from export.errors import DriftlineError
from stream.kafka.connections import mend_connections
from stream.kafka.header_names import mend_header_names
from stream.logs import set_up_logging
from stream.settings import Settings
from stream.topics import BrokerError
from stream.web.guard import HostRule
from stream.web.lag import LagPoll
from stream.web.log_reader import LogReader
from stream.web.picture import Picture, readings
from stream.web.site import Site
from stream.web.told import engine_figures, rate_figures, shown_user, your_list
from stream.web.viewers import Viewers, as_event
from stream.web.visitors import EventSender

#: Between two looks for users with news.
_TICK_S = 0.25
_TICKS_A_SECOND = 4
#: Open pages may end in order for so long.
_SHUTDOWN_S = 1.0


class PageError(DriftlineError):
    """The page cannot be served."""


@dataclass(frozen=True, slots=True)
class PageOptions:
    """Where the page listens: port 0 is a free one. `names` it may be asked for by, besides."""

    host: str
    port: int
    is_read_only: bool
    names: tuple[str, ...] = ()


class Page(Service):  # type: ignore[misc]
    """Reads the topics and tells the viewers."""

    def __init__(self, settings: Settings, options: PageOptions, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.picture = Picture(settings, _now_ms)
        self.viewers = Viewers()
        self._settings = settings
        self._options = options
        self._reader = LogReader(settings.bootstrap, readings(settings), self.picture.take)
        events = settings.topic("user-events")
        self._sender = None if options.is_read_only else EventSender(settings.bootstrap, events)
        self._runner: web.AppRunner | None = None
        self._told_rates = -1
        self.port = 0

    async def on_start(self) -> None:
        site = Site(
            self.picture, self.viewers, self._sender, lambda: self._reader.caught_up.is_set()
        )
        rule = HostRule(self._options.host, self._options.names)
        self._runner = web.AppRunner(
            site.application(rule), access_log=None, shutdown_timeout=_SHUTDOWN_S
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._options.host, self._options.port).start()
        except OSError as error:
            raise PageError(
                f"cannot listen on {self._options.host} port {self._options.port}: "
                f"{error.strerror or error}; choose another with --port, 0 for a free one"
            ) from error
        self.port = self._runner.addresses[0][1]
        await self.add_runtime_dependency(self._reader)
        if self._sender is not None:
            await self.add_runtime_dependency(self._sender)
        events = self._reader.partitions_of(self._settings.topic("user-events"))
        group = self._settings.prefix + self._settings.group
        consumer = self._reader.consumer
        await self.add_runtime_dependency(
            LagPoll(self._settings.bootstrap, group, consumer, events, self._take_lag)
        )

    async def on_stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @Service.task  # type: ignore[untyped-decorator]
    async def _tell(self) -> None:
        """Each quarter of a second the users with news, each second the engine's figures."""
        await self._reader.caught_up.wait()
        self.picture.is_live = True
        self.picture.on_list = self._tell_visitor
        self._greet_all()
        tick = 0
        while not self.should_stop:
            await self.sleep(_TICK_S)
            tick += 1
            changed, self.picture.changed = self.picture.changed, set()
            if not len(self.viewers):
                continue
            for key in changed & self.viewers.followed():
                self._tell_of_user(key)
            for key in changed & self.viewers.visitors():
                self._tell_visitor(key)
            if tick % _TICKS_A_SECOND == 0:
                self._tell_figures()

    def _greet_all(self) -> None:
        """What pages could not be told that were opened before all was read."""
        for key in self.viewers.followed():
            self._tell_of_user(key)
        for key in self.viewers.visitors():
            self._tell_visitor(key)
        self._tell_figures()

    def _tell_visitor(self, key: str) -> None:
        if key in self.viewers.visitors():
            event = as_event("you", your_list(self.picture, key))
            self.viewers.send(event, lambda viewer: viewer.visitor == key)

    def _tell_of_user(self, key: str) -> None:
        user = self.picture.users.get(key)
        if user is not None:
            event = as_event("user", shown_user(self.picture, user))
            self.viewers.send(event, lambda viewer: viewer.follows == key)

    def _tell_figures(self) -> None:
        figures = engine_figures(self.picture, _now_ms(), len(self.viewers))
        self.viewers.send(as_event("engine", figures))
        if self.picture.hit_rates.judged != self._told_rates:
            self._told_rates = self.picture.hit_rates.judged
            self.viewers.send(as_event("rates", rate_figures(self.picture)))

    def _take_lag(self, lag: int | None, committed: int | None) -> None:
        if self.picture.is_live:
            self.picture.worker.note_lag(_now_ms(), lag, committed)


def run_page(settings: Settings, options: PageOptions, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; says the address once the page can be opened.

    Raises DriftlineError where Kafka, its topics or the port cannot be used.
    """
    set_up_logging(settings.log_level)
    mend_connections()
    mend_header_names()
    uvloop.run(_serve(settings, options, say))


async def _serve(settings: Settings, options: PageOptions, say: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(each, stopped.set)
    page = Page(settings, options)
    try:
        await page.start()
        shown = f"[{options.host}]" if ":" in options.host else options.host
        say(f"http://{shown}:{page.port}/")
        await stopped.wait()
    except (KafkaError, TimeoutError, OSError) as error:
        raise BrokerError(
            f"Kafka at {settings.bootstrap} cannot be used: {error or type(error).__name__}. "
            "Start it, or set `bootstrap` (DRIFTLINE_BOOTSTRAP, --bootstrap) to where it is."
        ) from error
    finally:
        await page.stop()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
