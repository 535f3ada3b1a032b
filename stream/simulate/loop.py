"""An asyncio event loop on virtual time: no threads, no sockets, the same every time.

Where nothing is ready, the clock jumps to the next timer. A host that is paused, as by SIGSTOP, has
none of its callbacks run until it goes on; those of all others do.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import base_events, events
from collections.abc import Callable
from typing import Any, TypeVar

from export.errors import DriftlineError

T = TypeVar("T")

#: Nothing that is right needs so many steps of the loop at one moment.
MAX_STEPS_AT_A_TIME = 200_000


class Host:
    """A machine's process in a simulation, as far as the loop is concerned."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused_until_s = 0.0
        self.is_dead = False


#: Whose code runs: every task and timer that a host's task makes is its own.
HOST: contextvars.ContextVar[Host | None] = contextvars.ContextVar("host", default=None)


class StuckError(DriftlineError):
    """Nothing is ready and no timer is set: what waits will wait for ever."""


class VirtualLoop(base_events.BaseEventLoop):
    """Runs everything in one thread; `executor_delay_s` says how long work in a thread takes."""

    def __init__(self, executor_delay_s: Callable[[], float]) -> None:
        super().__init__()
        self._now_s = 0.0
        self._executor_delay_s = executor_delay_s
        self.steps = 0
        self._steps_at_a_time = 0

    def time(self) -> float:
        return self._now_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """The work is done at once, and known to be done after a while."""
        done: asyncio.Future[T] = self.create_future()
        try:
            result = func(*args)
        except Exception as error:
            self.call_later(self._executor_delay_s(), _fail, done, error)
        else:
            self.call_later(self._executor_delay_s(), _finish, done, result)
        return done

    def _run_once(self) -> None:
        scheduled: list[events.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        ready = self._ready  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not scheduled:
                raise StuckError("every task of the simulation waits, and no timer is set")
            if scheduled[0].when() > self._now_s:
                self._now_s, self._steps_at_a_time = scheduled[0].when(), 0
        while scheduled and scheduled[0].when() <= self._now_s:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]
            ready.append(handle)
        self._steps_at_a_time += len(ready)
        if self._steps_at_a_time > MAX_STEPS_AT_A_TIME:
            raise StuckError(f"{self._steps_at_a_time} steps without time going on: a busy loop")
        for _ in range(len(ready)):
            self._run(ready.popleft())

    def _run(self, handle: events.Handle) -> None:
        if handle._cancelled:
            return
        host = handle._context.get(HOST)  # type: ignore[attr-defined]
        if host is not None and host.is_dead:
            return
        if host is not None and host.paused_until_s > self._now_s:
            wake = events.TimerHandle(
                host.paused_until_s,
                handle._callback,  # type: ignore[attr-defined]
                handle._args,
                self,
                handle._context,  # type: ignore[attr-defined]
            )
            heapq.heappush(self._scheduled, wake)  # type: ignore[attr-defined]
            wake._scheduled = True  # type: ignore[attr-defined]
            return
        self.steps += 1
        handle._run()

    def _check_closed(self) -> None:
        """What is left of dead hosts is tidied up when it is collected, after the run."""

    def _process_events(self, event_list: Any) -> None:
        return

    def _write_to_self(self) -> None:
        return

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        return


def _finish(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
