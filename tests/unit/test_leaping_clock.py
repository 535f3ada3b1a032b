"""A process's wall clock leaps while it runs, and nothing else of it does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from stream.chaos.leaping_clock import set_ahead, write_folder

HOUR_S = 3600.0
#: Tells its wall clock, and by another one how long it has run, for each line it is sent.
SCRIPT = """
import time
begun = time.monotonic()
for _ in iter(input, ""):
    time.sleep(0.1)
    print(time.time(), time.time_ns() / 1e9, time.monotonic() - begun, flush=True)
"""


def test_the_wall_clock_of_a_process_leaps_ahead_and_back_while_it_runs(tmp_path: Path) -> None:
    clock = write_folder(tmp_path / "clock")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(clock.parent)},
    )
    assert process.stdin and process.stdout

    def ahead_h() -> list[float]:
        process.stdin.write("look\n")
        process.stdin.flush()
        wall_s, wall_of_ns_s, ran_s = map(float, process.stdout.readline().split())
        assert ran_s < 60
        return [round((at_s - time.time()) / HOUR_S, 1) for at_s in (wall_s, wall_of_ns_s)]

    assert ahead_h() == [0, 0]
    for hours in (7, -100, 0.5):
        set_ahead(clock, hours * HOUR_S)
        assert ahead_h() == [hours, hours]

    process.communicate("\n")
    assert process.returncode == 0
