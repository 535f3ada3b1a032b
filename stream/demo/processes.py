"""Run the processes of a demonstration so that none outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

#: A process that has not ended by then is killed.
_STOP_PATIENCE_S = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: prctl(2): which signal a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


class Child:
    """A process that can be started again; without our terminal and our settings.

    It has a session of its own: Ctrl-C reaches this process alone, which then ends it in order.
    It ends, too, when this process is killed.
    Temporary files that it leaves lie beside its log.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.command = command
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again after it has ended."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DRIFTLINE_")}
        environment["TMPDIR"] = str(self.log.parent)
        with self.log.open("ab") as output, _signals_wait():
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=self.log.parent,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return 0 if self._process is None else self._process.pid

    def poll(self) -> int | None:
        """Its exit code once it has ended, else None."""
        return None if self._process is None else self._process.poll()

    def stop(self) -> None:
        """End it in order, or kill it where that takes too long; it has ended then."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()

    def log_end(self) -> str:
        """The last lines of its log, for a message about what went wrong."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _end_with_parent() -> None:
    """Let the kernel end this process, a child of a demonstration, when its parent is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[Child]:
    """A process for the length of the block."""
    child = Child(command, log)
    try:
        child.start()
        yield child
    finally:
        child.stop()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal raise KeyboardInterrupt once; then nothing disturbs."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that come within the block count at its end: no process is started and forgotten."""
    came: list[int] = []
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    for each in _SIGNALS:
        if callable(before[each]):
            signal.signal(each, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in came[:1]:
            signal.raise_signal(number)
