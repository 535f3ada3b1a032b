"""Open a release that was written to disk, and refuse one that is not what its manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from export.catalogue import ReleaseCatalogue
from export.errors import DriftlineError
from export.manifest import Manifest, file_entry

MANIFEST = "manifest.json"
CATALOGUE = "catalogue.json"
GRAPH = "model.onnx"
TOWER = "item_tower.onnx"
GOLDEN = "golden.npz"
METRICS = "metrics.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
#: Without these a worker cannot rank, or cannot check that it ranks right.
NEEDED_FILES = (GRAPH, TOWER, CATALOGUE, GOLDEN)


class ReleaseError(DriftlineError):
    """A release cannot be used."""


class BrokenReleaseError(ReleaseError):
    """A release is not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release whose every file has the checksum that its manifest names.

    `sha256` is that of the manifest, and through it of all files.
    """

    name: str
    version: int
    sha256: str
    path: Path
    manifest: Manifest
    items: list[str]  # row of the item tower -> item id
    event_types: dict[str, int]  # name -> row, from 1 on; 0 is every other type
    attributes: dict[str, int]  # name -> attribute row of the item tower


def open_release(path: Path) -> Release:
    """Check every file of a release folder and read its catalogue.

    Raises ReleaseError where there is no release, and BrokenReleaseError where a file is missing,
    or has another size or checksum than the manifest names.
    """
    manifest = read_manifest(path)
    for name in NEEDED_FILES:
        if name not in manifest.files:
            raise BrokenReleaseError(
                f"{path}: wanted a manifest that lists {name}, got {sorted(manifest.files)}; "
                "train and export the release again"
            )
    for name, wanted in manifest.files.items():
        _check_file(path, name, wanted.bytes, wanted.sha256)
    try:
        catalogue = msgspec.json.decode((path / CATALOGUE).read_bytes(), type=ReleaseCatalogue)
    except msgspec.MsgspecError as error:
        raise BrokenReleaseError(f"{path / CATALOGUE}: wanted a catalogue, got: {error}") from error
    return Release(
        manifest.name,
        manifest.version,
        file_entry(path / MANIFEST).sha256,
        path,
        manifest,
        catalogue.items,
        {kind: row for row, kind in enumerate(catalogue.event_types) if row},
        {name: row for row, name in enumerate(catalogue.attributes)},
    )


def read_manifest(path: Path) -> Manifest:
    """The manifest of a release folder; nothing else is looked at.

    Raises ReleaseError where there is none, BrokenReleaseError where it cannot be read.
    """
    try:
        data = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise ReleaseError(
            f"{path}: wanted a release folder with {MANIFEST}, got: {error.strerror}; run "
            "`driftline train`, or name another registry"
        ) from error
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BrokenReleaseError(
            f"{path / MANIFEST}: wanted a manifest, got: {error}; train and export the release "
            "again"
        ) from error


def _check_file(path: Path, name: str, wanted_bytes: int, wanted_sha256: str) -> None:
    again = "copy the release again, or train and export it again"
    if Path(name).name != name:
        raise BrokenReleaseError(f"{path}: the manifest names a file outside the folder: {name!r}")
    try:
        got = file_entry(path / name)
    except OSError as error:
        raise BrokenReleaseError(
            f"{path / name}: wanted a file of {wanted_bytes} bytes, got: {error.strerror}; {again}"
        ) from error
    if got.bytes != wanted_bytes:
        raise BrokenReleaseError(
            f"{path / name}: wanted {wanted_bytes} bytes, got {got.bytes}; {again}"
        )
    if got.sha256 != wanted_sha256:
        raise BrokenReleaseError(
            f"{path / name}: wanted sha256 {wanted_sha256}, got {got.sha256}; {again}"
        )
