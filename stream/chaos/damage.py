"""Damage a stopped worker's databases on disk, as bad disks and interrupted copies do."""

from __future__ import annotations

import random
from pathlib import Path

#: Files without which, or with which broken, a database cannot be what it was.
_NEEDED = ("*.sst", "MANIFEST-*", "CURRENT")


def table_files(data_dir: Path) -> list[Path]:
    """The files with sorted rows of all databases."""
    return sorted(path for path in data_dir.glob("*/v*/tables/*.db/*.sst") if path.stat().st_size)


def flip_bit(data_dir: Path, rng: random.Random) -> Path:
    """Flip one bit of one file with sorted rows; there must be one."""
    path = rng.choice(table_files(data_dir))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return path


def truncate(data_dir: Path, rng: random.Random) -> Path:
    """Cut off the end of a file that a database needs."""
    path = rng.choice(_needed_files(data_dir))
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])
    return path


def remove(data_dir: Path, rng: random.Random) -> Path:
    """Remove a file that a database needs."""
    path = rng.choice(_needed_files(data_dir))
    path.unlink()
    return path


def _needed_files(data_dir: Path) -> list[Path]:
    found = [p for name in _NEEDED for p in data_dir.glob(f"*/v*/tables/*.db/{name}")]
    return sorted(path for path in found if path.stat().st_size)
