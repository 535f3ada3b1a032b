"""Put up an engine for a demonstration: broker, topics and the commands of its processes."""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from stream.demo.broker import embedded_broker
from stream.settings import Settings
from stream.topics import create_topics

Say = Callable[[str], None]

_COMMAND = [sys.executable, "-c", "from stream.cli import main; main()"]
_WORKER_SETTINGS = ("bootstrap", "prefix", "instance", "partitions", "data_dir", "registry")
_PAGE_SETTINGS = ("bootstrap", "prefix")


def put_up(
    name: str, bootstrap: str | None, folder: Path, stack: contextlib.ExitStack, say: Say
) -> Settings:
    """A broker, unless `bootstrap` names one, with the engine's topics; the settings of a worker.

    What `stack` is left with takes it away again: the embedded broker, or the topics, which on
    somebody else's Kafka have a prefix of their own.
    """
    begun = time.perf_counter()
    prefix = ""
    if bootstrap is None:
        bootstrap = stack.enter_context(embedded_broker(folder))
        say(f"broker   {since(begun)}  noida-db, embedded, at {bootstrap}")
    else:
        prefix = f"{name}-{uuid.uuid4().hex[:8]}-"
    settings = Settings(
        bootstrap=bootstrap,
        prefix=prefix,
        instance=name,
        partitions=4,
        data_dir=str(folder / "data"),
        registry=str(folder / "registry"),
    )
    if prefix:
        stack.callback(_delete_topics, settings)
    begun = time.perf_counter()
    created = create_topics(settings)
    where = f", their names begin with {prefix}" if prefix else ""
    say(f"topics   {since(begun)}  {len(created)} created{where}")
    return settings


def worker_command(settings: Settings) -> list[str]:
    """`driftline worker` with these settings."""
    return [*_COMMAND, "worker", *_options(settings, _WORKER_SETTINGS)]


def page_command(settings: Settings, port: int) -> list[str]:
    """`driftline page` with these settings, on a port of 127.0.0.1; its last word is the port."""
    return [*_COMMAND, "page", *_options(settings, _PAGE_SETTINGS), "--port", str(port)]


def since(begun: float) -> str:
    """The seconds since a time of `time.perf_counter`, for people."""
    return f"{time.perf_counter() - begun:5.1f} s"


def _options(settings: Settings, names: tuple[str, ...]) -> list[str]:
    options = []
    for name in names:
        options += ["--" + name.replace("_", "-"), str(getattr(settings, name))]
    return options


def _delete_topics(settings: Settings) -> None:
    """Take away what a demonstration made on a Kafka of somebody else."""
    with contextlib.suppress(KafkaError):
        admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap, bootstrap_timeout_ms=5000)
        try:
            ours = [name for name in admin.list_topics() if name.startswith(settings.prefix)]
            admin.delete_topics(ours)
            admin.delete_groups([settings.prefix + settings.group])
        except KafkaError:
            return
        finally:
            admin.close()
