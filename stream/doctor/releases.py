"""Look at the registry: is what ranks, or should rank, there and what it was announced as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from export.errors import DriftlineError
from export.registry import Registry
from stream.doctor.findings import Finding
from stream.events import ReleaseStage, decode_release_stage
from stream.settings import Settings


def live_stage(values: Sequence[bytes | None], name: str) -> ReleaseStage | None:
    """The stage that workers follow: the last on `model-releases` that went live."""
    found = None
    for value in values:
        try:
            stage = decode_release_stage(value) if value else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if stage is not None and stage.stage == "live" and stage.name == name:
            found = stage
    return found


def check_registry(settings: Settings, live: ReleaseStage | None) -> Finding:
    """The live release can be read and is the one announced; without one, the newest can be read.

    Every file's checksum is compared. `live` is None where nothing went live, or Kafka is not
    there to say.
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
    except (DriftlineError, OSError) as error:
        return Finding("registry", "fail", str(error))
    name = f"{release.name}/{release.version}"
    if live is None:
        said = f"{name} is whole, and none is live"
        return Finding("registry", "warn", said, "`driftline trainer` releases what it trains")
    if release.sha256 != live.sha256:
        said = f"{name} has sha256 {release.sha256[:12]}, {live.sha256[:12]} was announced"
        return Finding("registry", "fail", said, "copy the release again, or train another")
    said = f"{name} is live and whole, {len(release.items):,} items"
    return Finding(
        "registry", "ok", said + (f"; newest is {newest}" if newest != live.version else "")
    )
