"""Show the engine at work for as long as somebody looks: broker, worker, users, and the live page.

Worker and page are those of production, processes of their own that meet this one on topics only.
A worker that dies is started again, so that one may kill it and see that nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError

from export.errors import DriftlineError
from export.release import open_release
from stream.demo.broker import free_port
from stream.demo.engine import Say, page_command, put_up, since, worker_command
from stream.demo.players import TRUTH_TOPIC, Crowd, CrowdSettings, DataPlayer, Player
from stream.demo.processes import Child, running, stopped_by_signals
from stream.demo.release import BUNDLED_NAME, BUNDLED_REGISTRY
from stream.demo.show import Show
from stream.release_stages import announce
from stream.settings import Settings

#: A busy machine takes its time to start a process.
_PAGE_PATIENCE_S = 60.0


class DemoError(DriftlineError):
    """A step of the demo failed."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What is shown, and where."""

    bootstrap: str | None = None  # a Kafka; None: the embedded broker
    folder: Path | None = None  # kept; None: a temporary one
    data: tuple[str, Path] | None = None  # format and path, instead of simulated users
    crowd: CrowdSettings = field(default_factory=CrowdSettings)
    rate: float = 2.0  # events a second
    port: int = 0  # of the page; 0: one that is free
    has_page: bool = True
    opens_browser: bool = False


def run_demo(plan: DemoPlan, say: Say) -> None:
    """Run until Ctrl-C; leaves no process, no topic and, but for `folder`, no file behind.

    Raises DriftlineError where a step fails, with the end of the log of what failed.
    """
    say = _to_a_terminal_that_may_close(say)
    kept = plan.folder.absolute() if plan.folder else None
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(stopped_by_signals())
            folder = stack.enter_context(_folder(kept))
            _run(plan, folder, stack, say)
    except KafkaError as error:
        raise DemoError(
            f"Kafka at {plan.bootstrap or 'the embedded broker'} cannot be used: "
            f"{error or type(error).__name__}; start the demo again, or name another --bootstrap"
        ) from error
    except KeyboardInterrupt:
        left = "its files are removed" if kept is None else f"its files are in {kept}"
        say(f"\nstopped: all processes are ended, {left}")


def _run(plan: DemoPlan, folder: Path, stack: contextlib.ExitStack, say: Say) -> None:
    player = _player(plan)
    settings = put_up("demo", plan.bootstrap, folder, stack, say)
    _create_truth(settings)
    producer = KafkaProducer(bootstrap_servers=settings.bootstrap, acks="all", linger_ms=5)
    stack.callback(producer.close, timeout=5)
    if player.suits_release:
        _release(settings, say)
    worker_log = folder / "worker.log"
    worker = stack.enter_context(running(worker_command(settings), worker_log))
    page = stack.enter_context(_page(plan, settings, folder)) if plan.has_page else None
    show = stack.enter_context(Show.connected(settings, producer, player, worker, say))
    show.send_past()
    show.wait_for_first_list()
    say(f"list     {_process_age_s():5.1f} s  from the command to the first list of a visit")
    url = _url_once_it_answers(page, say) if page else ""
    if url and plan.opens_browser:
        webbrowser.open(url)
    say(f"ready    {_process_age_s():5.1f} s  from the command\n")
    if url:
        say(f"  {url}\n")
    say(f"Users act until Ctrl-C. Kill the worker, `kill -9 {worker.pid}`: it is started again.")
    show.go_on(plan.rate, [page] if page else [])


def _player(plan: DemoPlan) -> Player:
    now_ms = time.time_ns() // 1_000_000
    if plan.data is None:
        return Crowd(plan.crowd, now_ms)
    data_format, path = plan.data
    return DataPlayer(data_format, path, plan.crowd.past_clicks, now_ms)


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """A folder for everything: a temporary one, or one to keep that must be new or empty."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="driftline-demo-") as name:
            yield Path(name)
        return
    try:
        kept.mkdir(parents=True, exist_ok=True)
        is_empty = not any(kept.iterdir())
    except OSError as error:
        raise DemoError(
            f"wanted a folder to write to, got {kept}: {error.strerror}; name another --dir"
        ) from error
    if not is_empty:
        raise DemoError(f"wanted a new or empty folder, but {kept} is not; name another --dir")
    yield kept


def _create_truth(settings: Settings) -> None:
    name = settings.topic(TRUTH_TOPIC)
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=settings.bootstrap)) as admin:
        admin.create_topics({name: {"num_partitions": 1, "replication_factor": 1}})


def _release(settings: Settings, say: Say) -> None:
    """Put the bundled release into the registry, check it, and announce it as live."""
    begun = time.perf_counter()
    home = Path(settings.registry) / BUNDLED_NAME
    shutil.copytree(BUNDLED_REGISTRY / BUNDLED_NAME, home)
    release = open_release(max(home.iterdir(), key=lambda path: int(path.name)))
    announce(settings, release, "comes with the demo")
    say(f"release  {since(begun)}  {release.name}/{release.version}, its checksums are right")


def _page(plan: DemoPlan, settings: Settings, folder: Path) -> AbstractContextManager[Child]:
    """The page as a process, on the port of the plan or on one that it finds."""
    if plan.port and free_port(plan.port) != plan.port:
        raise DemoError(
            f"wanted port {plan.port} of 127.0.0.1 for the page, but somebody listens on it; "
            "name another --port, or none"
        )
    return running(page_command(settings, plan.port), folder / "page.log")


def _url_once_it_answers(page: Child, say: Say) -> str:
    """Where the page is, as it says itself; a page that is started again stays there."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < _PAGE_PATIENCE_S and page.poll() is None:
        told = re.search(r"http://127\.0\.0\.1:(\d+)/", page.log_end())
        with contextlib.suppress(OSError):
            if told is not None and urllib.request.urlopen(told[0] + "healthz", timeout=2):
                page.command[-1] = told[1]
                say(f"page     {since(begun)}  more, until it answers")
                return told[0]
        time.sleep(0.1)
    raise DemoError(f"the page does not answer. Its log:\n{page.log_end()}")


def _process_age_s() -> float:
    """Seconds since this process was started, the imports before `run_demo` too."""
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


def _to_a_terminal_that_may_close(say: Say) -> Say:
    def said(line: str) -> None:
        with contextlib.suppress(OSError):  # the end of the terminal is no reason not to tidy up
            say(line)

    return said
