"""The manifest of a release: its files with their checksums, and where it comes from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0)]


class FileEntry(Struct, frozen=True):
    """One file of the release folder."""

    sha256: str
    bytes: Count


class GraphInput(Struct, frozen=True):
    """An input of the graph: a dimension is a size, or a name where it varies."""

    name: str
    type: str
    shape: list[int | str]


class CatalogueReference(Struct, frozen=True):
    """The catalogue of the release."""

    sha256: str
    items: Count


class Lineage(Struct, frozen=True):
    """All that a training depends on: the same lineage on a CPU gives the same weights."""

    offsets: dict[str, dict[str, tuple[int, int]]]  # topic -> partition -> [from, to)
    code: str
    settings_sha256: str
    seed: int
    parent: int | None
    event_time: list[int] = []  # first and last, in milliseconds


class Gate(Struct, frozen=True):
    """One condition for going live: the value, its bound, and whether it holds."""

    value: float
    bound: float
    holds: bool


class Manifest(Struct, frozen=True):
    """manifest.json; written last, never changed. The stage of a release is on a topic."""

    schema: Literal["driftline.manifest/1"]
    name: str
    version: Annotated[int, Meta(ge=1)]
    created_at: Count  # milliseconds since 1970, UTC
    files: dict[str, FileEntry]
    inputs: list[GraphInput]
    catalogue: CatalogueReference
    lineage: Lineage
    gates: dict[str, Gate]
    opset: int
    precision: Literal["fp32", "fp16", "int8"]


def file_entry(path: Path) -> FileEntry:
    """Checksum and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(digest, path.stat().st_size)
