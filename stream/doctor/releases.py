"""Look at the registry: is what ranks, or should rank, there, and does it compute what it must."""

from __future__ import annotations

import asyncio
from pathlib import Path

from export.errors import DriftlineError
from export.registry import Registry
from stream.doctor.findings import Finding
from stream.events import ReleaseStage
from stream.releases import check_release
from stream.settings import Settings


def check_registry(settings: Settings, live: ReleaseStage | None) -> Finding:
    """The live release is the one announced, and passes the check that a worker makes of it.

    Without a live one the newest is looked at; `live` is None too where Kafka is not there to say.
    The check compares every file's checksum, and computes the golden outputs in a process of its
    own.
    """
    if not settings.model:
        return Finding("registry", "ok", "not used: `model` is off, live statistics rank")
    registry = Registry(Path(settings.registry))
    try:
        newest = registry.newest(settings.release)
        if live is None and newest is None:
            said = f"no release {settings.release} in {settings.registry}: live statistics rank"
            return Finding("registry", "warn", said, "`driftline trainer` makes one")
        release = registry.open(settings.release, live.version if live else None)
        asyncio.run(check_release(release.path, settings.release_budget_ms))
    except (DriftlineError, OSError) as error:
        return Finding("registry", "fail", str(error))
    name = f"{release.name}/{release.version}"
    if live is None:
        said = f"{name} is whole and computes what it must, and none is live"
        return Finding("registry", "warn", said, "`driftline releases announce` makes it live")
    if release.sha256 != live.sha256:
        said = f"{name} has sha256 {release.sha256[:12]}, {live.sha256[:12]} was announced"
        return Finding("registry", "fail", said, "copy the release again, or train another")
    said = f"{name} is live, whole and computes what it must, {len(release.items):,} items"
    return Finding(
        "registry", "ok", said + (f"; newest is {newest}" if newest != live.version else "")
    )
