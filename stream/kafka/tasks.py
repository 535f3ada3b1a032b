"""Ends a worker with a task of aiokafka's that fails and that nobody else looks at."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from export.errors import DriftlineError

Crash = Callable[[BaseException], Awaitable[None]]

#: Kept until they are done: an event loop itself holds its tasks weakly.
_crashes: set[asyncio.Future[None]] = set()


class TaskCancelledError(DriftlineError):
    """A task was cancelled that should have gone on."""


def crash_soon(crash: Crash, error: BaseException) -> None:
    """Await `crash` in a task of its own: what is being handled here is not why it is logged."""
    ending = asyncio.ensure_future(crash(error))
    _crashes.add(ending)
    ending.add_done_callback(_crashes.discard)


def crash_with(
    task: asyncio.Task[None], crash: Crash, is_closing: Callable[[], bool] = lambda: True
) -> None:
    """Await `crash` with the error that ends a task, or if it is cancelled before `is_closing`."""

    def look(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if task.cancelled() and not is_closing():
            error = TaskCancelledError(f"{task.get_name()} was cancelled, and is still needed")
        if error is not None:
            crash_soon(crash, error)

    task.add_done_callback(look)
