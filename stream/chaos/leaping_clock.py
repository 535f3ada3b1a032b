"""Let the wall clock of a Python process leap while it runs, as that of a machine that is set.

A folder that is on PYTHONPATH has a `sitecustomize.py` that calls `install` before anything else
is imported, so that all Python code of the process is under it, libraries included: `time.time`
and `time.time_ns`. C code is not (`datetime.now`, RocksDB); nor are clocks that never leap.
"""

from __future__ import annotations

import time
from pathlib import Path


def install(path: str) -> None:
    """Have the clock ahead by the seconds that are in this file, from the moment they are there."""
    true_time, true_time_ns = time.time, time.time_ns
    file = Path(path)

    def ahead() -> float:
        return float(file.read_text())

    time.time = lambda: true_time() + ahead()
    time.time_ns = lambda: true_time_ns() + int(ahead() * 1e9)


def write_folder(folder: Path) -> Path:
    """Make the folder for PYTHONPATH; returns the file with the seconds."""
    folder.mkdir(exist_ok=True)
    file = folder / "ahead_s"
    set_ahead(file, 0.0)
    (folder / "sitecustomize.py").write_text(
        f"from stream.chaos.leaping_clock import install\n\ninstall({str(file)!r})\n"
    )
    return file


def set_ahead(file: Path, seconds: float) -> None:
    """Let the clock leap."""
    temporary = file.with_suffix(".part")
    temporary.write_text(str(seconds))
    temporary.rename(file)
