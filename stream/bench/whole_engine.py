"""An engine with a past and a release, for benchmarks of the whole path from click to list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from export.event_types import EventRole
from export.release import Release
from stream.bench.topics import bench_topics, fill
from stream.bench.workload import by_rank, user_id
from stream.demo.release import BUNDLED_NAME, BUNDLED_REGISTRY
from stream.events import UserEvent, encode
from stream.release_stages import announce
from stream.settings import Settings
from stream.verify.fold import verify_fold

#: Past events of each user; they fill rows and statistics and ask for no list.
PAST_EVENTS_A_USER = 3
_PAST = "past"
_ITEM_EXPONENT = 1.0


@dataclass(frozen=True, slots=True)
class World:
    """Who acts on what: users by number, the items' ids, and how the past is drawn."""

    users: int
    items: list[str]
    seed: int = 1

    @property
    def events(self) -> int:
        """Events of the past."""
        return max(self.users * PAST_EVENTS_A_USER, len(self.items))

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of every past event, over the last day; every item and user is in one."""
        rng = np.random.default_rng(self.seed)
        drawn = by_rank(rng, len(self.items), _ITEM_EXPONENT, self.events)
        drawn[: len(self.items)] = np.arange(len(self.items))
        end_ms = int(time.time() * 1000)
        for number, item in enumerate(drawn.tolist()):
            user = user_id(number % self.users)
            event_ms = end_ms - 60_000 - (self.events - number) * 86_000_000 // self.events
            event = UserEvent(
                f"{_PAST}-{number:08d}", _PAST, event_ms, user_id=user, item_id=self.items[item]
            )
            yield user.encode(), encode(event)


def world_of(release: Release, users: int, items: int) -> World:
    """So many users, and the release's items with new ones behind them until there are `items`."""
    known = list(release.items[:items])
    return World(users, [*known, *(f"new-{number}" for number in range(items - len(known)))])


def bundled_release() -> Path:
    """The release that comes with the package."""
    return max((BUNDLED_REGISTRY / BUNDLED_NAME).iterdir(), key=lambda path: int(path.name))


@contextmanager
def whole_engine(
    bootstrap: str, partitions: int, release: Release, world: World, home: Path
) -> Iterator[Settings]:
    """Topics with the past in user-events and the release announced; settings for workers.

    No list is ever postponed: a late one counts as late.
    """
    with bench_topics(bootstrap, partitions) as plain:
        registry = home / "registry"
        (registry / release.name).mkdir(parents=True)
        (registry / release.name / str(release.version)).symlink_to(release.path.resolve())
        settings = msgspec.structs.replace(
            plain,
            registry=str(registry),
            release=release.name,
            data_dir=str(home / "data"),
            postpone_after_ms=10**9,
            event_types={_PAST: EventRole("positive", refreshes=False)},
        )
        announce(settings, release, "a benchmark")
        asyncio.run(fill(settings, world))
        yield settings


def state_errors(settings: Settings, data_dirs: list[Path]) -> list[str]:
    """What `driftline verify fold` finds wrong with an engine at rest."""
    report = verify_fold(settings, data_dirs)
    return [finding for check in report.checks if not check.holds for finding in check.told]
