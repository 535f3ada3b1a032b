"""Make all checks of `driftline doctor`, one finding each, whatever is broken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from kafka.errors import KafkaError

from stream.doctor.broker import KafkaLook, check_needed_topics, look_at_kafka
from stream.doctor.findings import Finding
from stream.doctor.machine import (
    check_disk,
    check_packages,
    check_port,
    check_provider,
    check_python,
)
from stream.doctor.records import check_clock, check_events, check_partitioner
from stream.doctor.releases import check_registry
from stream.events import ReleaseStage
from stream.release_stages import live_stage
from stream.settings import Settings

_OF_RECORDS = ("partitioner", "events", "clock")


def examine(settings: Settings, sample: int) -> Iterator[Finding]:
    """Findings as they are made; those on records look at about `sample` of the newest."""
    yield check_python()
    yield check_packages()
    yield check_provider(settings)
    yield check_disk(settings)
    yield check_port(settings)
    try:
        with look_at_kafka(settings) as look:
            yield from _on_kafka(settings, look, sample)
    except (KafkaError, ValueError, OSError) as error:
        said = f"Kafka at {settings.bootstrap} cannot be used: {error or type(error).__name__}"
        advice = "start it, or set `bootstrap` (--bootstrap) to where it is"
        yield Finding("broker", "fail", said, advice)
        for name in ("topics", "fence", *_OF_RECORDS, "group"):
            yield Finding(name, "skip", "needs the broker")
        yield check_registry(settings, None)


def _on_kafka(settings: Settings, look: KafkaLook, sample: int) -> Iterator[Finding]:
    yield look.check_broker()
    yield check_needed_topics(settings)
    yield look.check_fence()
    yield from _on_records(settings, look, sample)
    yield _told(look.check_group)
    yield check_registry(settings, _live(settings, look))


def _on_records(settings: Settings, look: KafkaLook, sample: int) -> Iterator[Finding]:
    topic = settings.topic("user-events")
    try:
        _, ends = look.bounds(topic)
        records = look.newest(topic, sample) if ends else []
    except KafkaError as error:
        said = f"the newest records of {topic} cannot be read: {error!r}"
        yield Finding("partitioner", "fail", said, "see the broker")
        yield from (Finding(name, "skip", "needs these records") for name in _OF_RECORDS[1:])
        return
    if not ends:
        yield from (Finding(name, "skip", f"needs {topic}") for name in _OF_RECORDS)
        return
    yield check_partitioner(records, len(ends))
    yield check_events(records, settings)
    yield check_clock(records, int(time.time() * 1000))


def _live(settings: Settings, look: KafkaLook) -> ReleaseStage | None:
    topic = settings.topic("model-releases")
    begins, ends = look.bounds(topic)
    count = sum(end - begins[p] for p, end in ends.items())
    values = [record.value for record in look.newest(topic, count)] if count else []
    return live_stage(values, settings.release)


def _told(check: Callable[[], Finding]) -> Finding:
    """The check of the group; a coordinator that is just starting is no reason to end."""
    try:
        return check()
    except KafkaError as error:
        return Finding("group", "warn", f"cannot be read: {error!r}", "look again in a moment")
