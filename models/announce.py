"""Tell workers and people what became of a release."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from export.manifest import Gate
from models.job import Result
from models.settings import TrainerSettings
from stream.events import ReleaseStage

_log = logging.getLogger(__name__)

RELEASES, RELEASE_LOG = "model-releases", "release-log"
_SEND_TIMEOUT_S = 10.0


class LoggedStage(ReleaseStage, frozen=True, kw_only=True):
    """A change of stage on `release-log`, with what decided it."""

    gates: dict[str, Gate]
    metrics: dict[str, Any]


class Announcer:
    """Puts stages on `model-releases` (key name/version) and `release-log` (key name), in order.

    What cannot be sent stays pending, and is sent once the broker is there again.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        self._pending: list[tuple[str, bytes, bytes]] = []  # topic, key, value
        self._producer: Any = None

    def announce(self, result: Result, reason: str, at_ms: int) -> None:
        """A release is first a candidate, and then live, or rejected if a gate does not hold."""
        for stage in ("candidate", "rejected" if result.refusals else "live"):
            self._queue(result, stage, reason, at_ms)
        self.send_pending()

    def send_pending(self) -> None:
        """Try to send what is pending, without waiting for a broker that is away."""
        while self._pending:
            topic, key, value = self._pending[0]
            try:
                if self._producer is None:
                    self._producer = KafkaProducer(
                        bootstrap_servers=self._settings.bootstrap,
                        acks="all",
                        bootstrap_timeout_ms=2000,
                    )
                self._producer.send(topic, value=value, key=key).get(timeout=_SEND_TIMEOUT_S)
            except KafkaError as error:
                _log.warning("cannot announce a release yet", extra={"error": str(error)})
                return
            del self._pending[0]

    def close(self) -> None:
        """Let go of the connections."""
        if self._producer is not None:
            self._producer.close(timeout=2)

    def _queue(self, result: Result, stage: Any, reason: str, at_ms: int) -> None:
        name = self._settings.release
        record = ReleaseStage(
            schema="driftline.model-release/1",
            name=name,
            version=result.version,
            stage=stage,
            sha256=result.sha256,
            path=result.path,
            at=at_ms,
            reason=reason,
        )
        logged = LoggedStage(
            **msgspec.structs.asdict(record), gates=result.gates, metrics=result.metrics
        )
        key = f"{name}/{result.version}".encode()
        for topic, at, value in ((RELEASE_LOG, name.encode(), logged), (RELEASES, key, record)):
            self._pending.append((self._settings.topic(topic), at, msgspec.json.encode(value)))
