"""Workers as processes that are killed, stopped and started again, each with a disk of its own."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path

from export.errors import DriftlineError
from stream.chaos.leaping_clock import set_ahead, write_folder

_COMMAND = (sys.executable, "-c", "from stream.cli import main; main()", "worker")
_STOP_PATIENCE_S = 30.0
_BATCHES = b"driftline_batches_total "
_DAMAGED = "A table partition on disk is damaged"
#: Between two looks at a worker's count of batches.
_LOOK_S = 0.02


class WorkerError(DriftlineError):
    """A worker does not do what a run needs it to do."""


class WorkerProcess:
    """One worker; started again it finds its disk and, by its name, its place in the group."""

    def __init__(self, name: str, home: Path, port: int, options: list[str]) -> None:
        self.name = name
        self.data_dir = home / name
        self.log_path = home / f"{name}.log"
        self.unexpected_ends: list[int] = []
        self._port = port
        own = ["--instance", name, "--data-dir", str(self.data_dir), "--metrics-port", str(port)]
        self._command = [*_COMMAND, *options, *own]
        self._clock: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, crash: str = "", has_own_clock: bool = False) -> None:
        """Start it; `crash` is a step and a number of batches, see stream.app.

        With a clock of its own `leap_clock` can put that forward and back while it runs.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DRIFTLINE_")}
        if has_own_clock:
            folder = self.log_path.with_suffix(".clock")
            self._clock = write_folder(folder)
            others = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = f"{folder}:{others}" if others else str(folder)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | {"DRIFTLINE_TEST_CRASH": crash},
                cwd=self.log_path.parent,
                start_new_session=True,
            )

    def leap_clock(self, ahead_s: float) -> None:
        """Let its wall clock be so far ahead from now on; it must have one of its own."""
        if self._clock is None:
            raise WorkerError(f"{self.name} was started without a clock of its own")
        set_ahead(self._clock, ahead_s)

    @property
    def is_running(self) -> bool:
        """Whether its process is there, stopped or not."""
        return self._process is not None and self._process.poll() is None

    def rss_bytes(self) -> int:
        """Memory that it has now; it must be running."""
        process = self._process
        statm = Path(f"/proc/{process.pid if process else 0}/statm")
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; it has ended then."""
        self.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit code; it is killed where it takes too long."""
        self.send_signal(signal.SIGCONT)
        self.send_signal(signal.SIGTERM)
        code = self.wait_for_end(_STOP_PATIENCE_S)
        if code is None:
            self.kill()
            raise WorkerError(f"{self.name} did not end within {_STOP_PATIENCE_S:.0f} s of SIGTERM")
        return code

    def wait_for_end(self, patience_s: float) -> int | None:
        """Its exit code once it has ended by itself; None: it goes on."""
        if self._process is None:
            return None
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return None

    def start_if_ended(self, *arguments: str) -> None:
        """What a supervisor does: start again what has ended by itself."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self.unexpected_ends.append(code)
            self.start(*arguments)

    def wipe(self) -> None:
        """Remove its disk."""
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def limit_files(self, most_bytes: int | None) -> None:
        """Let no file grow beyond so many bytes, its log too; None: as they like."""
        if self._process is not None:
            soft = resource.RLIM_INFINITY if most_bytes is None else most_bytes
            limits = (soft, resource.RLIM_INFINITY)
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, limits)

    def batches(self) -> int | None:
        """Batches done since it was started; None: it does not answer."""
        try:
            address = f"http://127.0.0.1:{self._port}/metrics"
            with urllib.request.urlopen(address, timeout=2) as answer:
                lines: list[bytes] = answer.read().splitlines()
        except (OSError, HTTPException):  # it may end while it answers
            return None
        found = [line for line in lines if line.startswith(_BATCHES)]
        return int(float(found[0].split()[1])) if found else 0

    def wait_until_at_work(self, patience_s: float) -> bool:
        """Until it has just done a batch and goes on; False: it has not by then."""
        deadline = time.monotonic() + patience_s
        before = self.batches()
        while time.monotonic() < deadline:
            now = self.batches()
            if before is not None and now is not None and now > before:
                return True
            before = now
            time.sleep(_LOOK_S)
        return False

    def damages_found(self) -> int:
        """How often its log says that a database on disk was damaged and dropped."""
        if not self.log_path.exists():
            return 0
        return self.log_path.read_text(errors="replace").count(_DAMAGED)

    def log_end(self) -> str:
        """The last lines of its log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-20:])
