"""Ends a worker that stood still so long that the group may have given its work away.

A process that was stopped (SIGSTOP, a frozen container, a suspended machine, a blocked event loop)
does not know it, goes on with the batch it had, and writes rows that are stale by then. The clock
tells: nothing ran for longer than three quarters of the session timeout. The check comes right
before results are sent, and before rows are written. No clean shutdown is tried: it would write.

A worker that was told by the group that it is out, and whose batch still waits for an answer over
other connections, has nothing to wait for either: what it does is not taken any more.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from mode import Service

logger = logging.getLogger(__name__)

#: Exit code of a worker that fenced itself off. The number of sysexits' EX_TEMPFAIL; a supervisor
#: should start the worker again.
FENCED_EXIT_CODE = 75

#: The group expires a member after one session without a heartbeat. The margin is for the time
#: between the member's last heartbeat and the moment it stopped.
FENCE_SHARE = 0.75

#: Ticks in the allowed pause: the clock read is at most this part of it too old.
TICKS_PER_PAUSE = 20


def clock_s() -> float:
    """Seconds that go on while the process, and on Linux the machine, sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def end_process(code: int) -> None:
    """Leave at once: nothing is flushed to the broker, no handler runs."""
    logging.shutdown()
    os._exit(code)


class LoopGuard(Service):  # type: ignore[misc]
    """Watches how long the event loop stood still.

    `check()` is to be called before results are sent (step 5) and before rows are written
    (step 6). `also_check` is called by it after the clock was found good, and may raise. While
    `has_partitions` says no, as at a slow start, a pause is only logged. While
    `has_lost_work` says yes, work is under way whose partitions others have: for longer than such
    a pause, and the process ends too. `wiring.loop_guard` makes one for an app.
    """

    def __init__(
        self,
        session_timeout_s: float,
        *,
        also_check: Callable[[], None] = lambda: None,
        has_partitions: Callable[[], bool] = lambda: True,
        has_lost_work: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = clock_s,
        end: Callable[[int], None] = end_process,
        **kwargs: object,
    ) -> None:
        self.max_pause_s = FENCE_SHARE * session_timeout_s
        self.longest_pause_s = 0.0
        self._also_check = also_check
        self._has_partitions = has_partitions
        self._has_lost_work = has_lost_work
        self._lost_since_s: float | None = None
        self._clock = clock
        self._end = end
        self._last_ran_s = clock()
        super().__init__(**kwargs)

    def check(self) -> None:
        """End the process if it stood still too long; otherwise note that it runs.

        Raises what `also_check` raises.
        """
        self._note_that_it_runs()
        self._also_check()

    async def on_start(self) -> None:
        self._last_ran_s = self._clock()
        if threading.current_thread() is threading.main_thread():
            # runs before any other Python code of the main thread after a SIGSTOP
            signal.signal(signal.SIGCONT, self._on_continue)

    async def on_stop(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCONT, signal.SIG_DFL)

    @Service.task  # type: ignore[untyped-decorator]
    async def _tick(self) -> None:
        while not self.should_stop:
            self._note_that_it_runs()
            self._note_that_work_is_wanted()
            await self.sleep(self.max_pause_s / TICKS_PER_PAUSE)

    def _on_continue(self, number: int, frame: FrameType | None) -> None:
        self._note_that_it_runs()

    def _note_that_it_runs(self) -> None:
        now_s = self._clock()
        pause_s = now_s - self._last_ran_s
        self.longest_pause_s = max(self.longest_pause_s, pause_s)
        self._last_ran_s = now_s
        if pause_s > self.max_pause_s:
            self._stood_still(pause_s)

    def _stood_still(self, pause_s: float) -> None:
        if not self._has_partitions():
            logger.warning("The worker stood still for %.1f s while it had no partitions", pause_s)
            return
        logger.critical(
            "The worker stood still for %.1f s, more than the %.1f s in which it surely keeps its "
            "partitions: it ends without writing, and may be started again",
            pause_s,
            self.max_pause_s,
        )
        self._end(FENCED_EXIT_CODE)

    def _note_that_work_is_wanted(self) -> None:
        """The batch in work has a moment to notice by itself, at its next check."""
        if not self._has_lost_work():
            self._lost_since_s = None
            return
        now_s = self._clock()
        self._lost_since_s = self._lost_since_s or now_s
        if now_s - self._lost_since_s > self.max_pause_s:
            logger.critical(
                "The group has put this worker out, and the batch in work still waits for an "
                "answer: it ends without writing, and may be started again. Look at what lies "
                "between it and Kafka"
            )
            self._end(FENCED_EXIT_CODE)
