"""Runs `driftline demo` for a test, and looks for what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import termios
from pathlib import Path

from engine import COMMAND, environment, wait_until

PATIENCE_S = 120.0


class Demo:
    """A running `driftline demo` whose temporary files lie in a folder of the test."""

    def __init__(self, folder: Path, *options: str, terminal: int | None = None) -> None:
        self.folder = folder
        self._output = folder.with_suffix(".txt")
        folder.mkdir()
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "demo", *options],
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=output if terminal is None else terminal,
                stderr=subprocess.STDOUT,
                env=environment(TMPDIR=str(folder)),
                start_new_session=True,
                preexec_fn=None if terminal is None else _take_terminal,
            )

    def said(self) -> str:
        return self._output.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What it says, once it does; fails when it ends without."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.said())
            assert match or self.process.poll() is None, self.said()
            return match

        match = wait_until(found, lambda: f"it says {pattern}:\n{self.said()}", PATIENCE_S)
        assert isinstance(match, re.Match)
        return match

    def stop(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)
        assert self.process.wait(PATIENCE_S) == 0, self.said()

    @property
    def bootstrap(self) -> str:
        return self.wait_for(r"embedded, at (\S+)")[1]

    def left_behind(self) -> list[str]:
        """Files, and processes that have the folder in their command or work in it."""
        return [str(path) for path in self.folder.iterdir()] + self.processes_left()

    def processes_left(self) -> list[str]:
        """Commands of processes that have the folder in them, or work in it."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                at = str((process / "cwd").readlink())
            except OSError:
                continue
            if str(self.folder) in command + at and int(process.name) != os.getpid():
                found.append(command)
        return found


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
