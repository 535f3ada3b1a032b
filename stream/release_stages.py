"""Say which release is live, so that workers take it over, and read which one is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from export.errors import DriftlineError
from export.gate import failures
from export.registry import Registry
from export.release import Release
from stream.events import ReleaseStage, decode_release_stage, encode
from stream.settings import Settings
from stream.verify.topics import KafkaLog

_BOOTSTRAP_TIMEOUT_MS = 5000
_SEND_TIMEOUT_S = 10.0


class AnnounceError(DriftlineError):
    """Kafka did not take the word that a release is live."""


class RefusedReleaseError(DriftlineError):
    """A gate keeps a release from going live."""


class ReleaseLine(msgspec.Struct, frozen=True):
    """A release of the registry, for a list of them."""

    version: int
    created_at: int  # milliseconds since 1970, UTC
    items: int
    gates: dict[str, float]
    holds: bool  # all gates do
    is_live: bool


def live_stage(values: Iterable[bytes | None], name: str) -> ReleaseStage | None:
    """The stage that workers follow: the last on `model-releases` that went live."""
    found = None
    for value in values:
        try:
            stage = decode_release_stage(value) if value else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        if stage is not None and stage.stage == "live" and stage.name == name:
            found = stage
    return found


def live_release(settings: Settings) -> ReleaseStage | None:
    """What workers of these settings follow now. Raises LogError where Kafka does not say."""
    records = KafkaLog(settings.bootstrap).read(settings.topic("model-releases"), "releases")
    return live_stage((record.value for record in records), settings.release)


def releases(settings: Settings, live: ReleaseStage | None) -> list[ReleaseLine]:
    """The releases of the settings' registry and name, oldest first."""
    registry = Registry(Path(settings.registry))
    lines = []
    for version in registry.versions(settings.release):
        manifest = registry.open(settings.release, version).manifest
        lines.append(
            ReleaseLine(
                version=version,
                created_at=manifest.created_at,
                items=manifest.catalogue.items,
                gates={name: gate.value for name, gate in manifest.gates.items()},
                holds=not failures(manifest.gates),
                is_live=live is not None and live.version == version,
            )
        )
    return lines


def require_gates(release: Release) -> None:
    """Raises RefusedReleaseError, with what was measured, where a gate does not hold."""
    if found := failures(release.manifest.gates):
        raise RefusedReleaseError(
            f"wanted a release whose gates hold, got {release.name}/{release.version}: "
            f"{'; '.join(found)}. Announce another one by its number (`driftline releases list`), "
            "or this one all the same with --despite-gates"
        )


def announce(settings: Settings, release: Release, reason: str) -> None:
    """Say on `release-log` and `model-releases` that a release is live, and wait for Kafka.

    Workers follow the release that was announced last: one older than the live one is a way back.
    Raises AnnounceError where Kafka does not take it.
    """
    stage = ReleaseStage(
        schema="driftline.model-release/1",
        name=release.name,
        version=release.version,
        stage="live",
        sha256=release.sha256,
        path=f"{release.name}/{release.version}",
        at=time.time_ns() // 1_000_000,
        reason=reason,
    )
    value = encode(stage)
    try:
        producer = KafkaProducer(
            bootstrap_servers=settings.bootstrap,
            acks="all",
            allow_auto_create_topics=False,
            max_block_ms=int(_SEND_TIMEOUT_S * 1000),
            bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
        )
        try:
            for topic, key in (("release-log", release.name), ("model-releases", stage.path)):
                sent = producer.send(settings.topic(topic), key=key.encode(), value=value)
                sent.get(_SEND_TIMEOUT_S)
        finally:
            producer.close(timeout=2)
    except (KafkaError, ValueError) as error:
        raise AnnounceError(
            f"wanted to say at {settings.bootstrap} that {stage.path} is live, got {error!r}; "
            "start Kafka, or create the topics (`driftline topics create`)"
        ) from error
