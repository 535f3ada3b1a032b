"""Look whether this Kafka can fence the changelog, and remembers long enough whom it has fenced."""

from __future__ import annotations

from collections.abc import Mapping

from stream.doctor.findings import Finding
from stream.kafka.changelog_fence import RENEW_S

EPOCHS = "producer.id.expiration.ms"
IDS = "transactional.id.expiration.ms"
COPIES = "transaction.state.log.replication.factor"
BROKER_SETTINGS = (EPOCHS, IDS, COPIES)

#: Workers renew every RENEW_S: with twice that a renewal may fail and come late.
_LEAST_MS = 2 * RENEW_S * 1000
_HOUR_MS = 3_600_000


def check_fence(broker: Mapping[str, int], nodes: int, has_coordinator: bool) -> Finding:
    """Judge the BROKER_SETTINGS of a cluster of so many nodes; `has_coordinator`: it has made the
    topic of transactional ids."""
    if not broker.keys() >= set(BROKER_SETTINGS):
        said = "the broker does not tell how long it keeps epochs of producers"
        return Finding("fence", "warn", said, "use Apache Kafka where state must be exact")
    if not has_coordinator and broker[COPIES] > nodes:
        return Finding(
            "fence",
            "fail",
            f"{COPIES} is {broker[COPIES]}, and there are {nodes} nodes: no worker can start",
            f"set {COPIES} to {nodes} on the broker, or start more nodes",
        )
    for name in (EPOCHS, IDS):
        if broker[name] < _LEAST_MS:
            said = f"{name} is {broker[name]}: a former owner's rows may be taken after that"
            return Finding(
                "fence", "warn", said, f"set it to {_LEAST_MS:.0f} or more on the broker"
            )
    hours = [broker[name] // _HOUR_MS for name in (EPOCHS, IDS)]
    said = f"epochs of producers are kept for {hours[0]} h, transactional ids for {hours[1]} h"
    return Finding("fence", "ok", said)
