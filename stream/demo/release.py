"""Train the release that the demo brings along, and find it.

    driftline demo-release --registry DIR

plays the simulator into a file of events and runs `driftline train` on it: whoever runs it again
gets the same events, and from the same code on a CPU the same weights. The manifest's lineage
names the file, and through its name the seed and the number of users. What the package holds in
`stream/demo/registry` was made so; it needs the extra `train` to make, and none to use.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from export.errors import DriftlineError
from stream.demo.catalogue import birth_times, demo_items
from stream.demo.simulator import DAY_MS, Simulator, SimulatorSettings

#: The bundled registry: one release under the name that workers follow by default.
BUNDLED_REGISTRY = Path(__file__).parent / "registry"
BUNDLED_NAME = "driftline"
USERS, SEED, CLICKS = 800, 1, 60_000
#: The simulated month ends here: 2026-01-01, UTC.
_END_MS = 1_767_225_600_000
_SPAN_MS = 28 * DAY_MS


class ReleaseBuildError(DriftlineError):
    """The training of the demo's release failed."""


def build_release(registry: Path) -> Path:
    """Train on simulated users and write the next release into a registry; returns its folder.

    Raises ReleaseBuildError when the training fails or the release may not go live.
    """
    registry = registry.absolute()
    with tempfile.TemporaryDirectory(prefix="driftline-demo-release-") as folder:
        events = f"simulator-users-{USERS}-seed-{SEED}-clicks-{CLICKS}.jsonl"
        with (Path(folder) / events).open("wb") as file:
            file.writelines(event_lines(USERS, SEED, CLICKS))
        options = ["--data", events, "--format", "jsonl", "--registry", str(registry)]
        command = [sys.executable, "-c", "from stream.cli import main; main()", "train", *options]
        done = subprocess.run([*command, "--release", BUNDLED_NAME], cwd=folder)
    if done.returncode:
        raise ReleaseBuildError(
            f"wanted a release, but `driftline train` ended with {done.returncode}; see above"
        )
    return max(
        (path.parent for path in (registry / BUNDLED_NAME).glob("*/manifest.json")),
        key=lambda path: int(path.name),
    )


def event_lines(users: int, seed: int, clicks: int) -> Iterator[bytes]:
    """A month of simulated clicks as lines of the data format `jsonl`, in the order of time."""
    simulator = Simulator(SimulatorSettings(users, seed), birth_times(_END_MS, DAY_MS))
    played = simulator.clicks(clicks, _END_MS - _SPAN_MS, _END_MS)
    items = demo_items()
    columns = played.users.tolist(), played.items.tolist(), played.times_ms.tolist()
    for user, number, time_ms in zip(*columns, strict=True):
        item = items[number]
        line = {
            "user": f"u-{user}",
            "item": item.item_id,
            "time": time_ms / 1000,
            "title": item.title,
            "categories": item.categories,
        }
        yield msgspec.json.encode(line) + b"\n"
