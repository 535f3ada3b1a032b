"""What is sent while workers are killed: real events, and now and then one that is not as usual."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from export.datasets import read_dataset

Record = tuple[bytes | None, bytes | None]


def data_folder() -> Path:
    """Data sets: DRIFTLINE_TEST_DATA, else `../shared/data` beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("DRIFTLINE_TEST_DATA", beside))


def interactions(count: int, seed: int) -> list[tuple[str, str, int]]:
    """(user, item, time in ms) of MovieTweetings where it is, else of zipf users and items."""
    folder = data_folder() / "movietweetings"
    if (folder / "ratings.dat").exists():
        data = read_dataset(folder, "movietweetings").interactions[-count:]
        return [(e.user, e.item, int(e.time_s * 1000)) for e in data]
    rng = random.Random(seed)
    zipf = [1 / rank for rank in range(1, 3001)]
    users = rng.choices(range(3000), zipf, k=count)
    items = rng.choices(range(3000), zipf, k=count)
    times = [1_380_000_000_000 + number * 60_000 for number in range(count)]
    return [(f"u{u}", f"i{i}", t) for u, i, t in zip(users, items, times, strict=True)]


def records(count: int, seed: int) -> Iterator[Record]:
    """Records of user-events: ratings with visits between them, and of every hundred about one
    sent twice, one that comes late, and now and then one that is refused or has a wrong key."""
    rng = random.Random(seed)
    for number, (user, item, time_ms) in enumerate(interactions(count, seed)):
        chance = rng.random()
        fields = {
            "event_id": f"event-{seed}-{number:07d}",
            "type": "rate",
            "event_time": time_ms - (rng.randrange(10**9) if chance < 0.01 else 0),
            "user_id": user,
            "item_id": item,
            "value": rng.randrange(1, 11),
        }
        value = json.dumps(fields).encode()
        if chance > 0.998:
            yield b"another-user", value
        else:
            yield user.encode(), value
        if chance > 0.99:
            yield user.encode(), value
        if 0.5 < chance < 0.503:
            yield user.encode(), value[:-9]
        if 0.2 < chance < 0.3:
            visit = fields | {"type": "visit", "event_id": f"visit-{seed}-{number:07d}"}
            yield user.encode(), json.dumps(visit).encode()
