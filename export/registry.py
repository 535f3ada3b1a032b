"""The registry: a folder of releases, `<name>/<version>`, each written once and never changed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from export.errors import DriftlineError
from export.manifest import FileEntry, Manifest, file_entry
from export.release import MANIFEST, Release, open_release

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class RegistryError(DriftlineError):
    """The registry does not hold what was asked for."""


class Registry:
    """Releases by name and version. Several processes may read while one writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self, name: str) -> list[int]:
        """All complete releases of a name, oldest first."""
        folder = self.root / _checked(name)
        if not folder.is_dir():
            return []
        return sorted(
            int(child.name)
            for child in folder.iterdir()
            if child.name.isdecimal() and (child / MANIFEST).is_file()
        )

    def newest(self, name: str) -> int | None:
        """The highest version, None where there is no release."""
        return max(self.versions(name), default=None)

    def path(self, name: str, version: int) -> Path:
        """Where a release lies, or would."""
        return self.root / _checked(name) / str(version)

    def open(self, name: str, version: int | None = None) -> Release:
        """A checked release, the newest if no version is given.

        Raises RegistryError where it is not there, ReleaseError where it cannot be used.
        """
        if version is None:
            version = self.newest(name)
        if version is None or version not in self.versions(name):
            raise RegistryError(
                f"wanted release {name}/{version or 'newest'} in {self.root}, got versions "
                f"{self.versions(name)}; run `driftline train`, or name another registry"
            )
        return open_release(self.path(name, version))

    def write(
        self,
        name: str,
        fill: Callable[[Path], None],
        manifest: Callable[[int, dict[str, FileEntry]], Manifest],
    ) -> Release:
        """Write the next version.

        1. `fill` writes all files but the manifest into a folder of a temporary name.
        2. Their checksums go into the manifest, which is written last.
        3. Everything is synced, and the folder renamed to its version; if another process took
           that version meanwhile, the next one is taken with a manifest of its own.

        A failure leaves no release behind. Returns the release, opened and checked.
        """
        home = self.root / _checked(name)
        home.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=home))
        try:
            folder.chmod(0o755)
            fill(folder)  # 1
            files = {child.name: file_entry(child) for child in sorted(folder.iterdir())}
            for child in folder.iterdir():
                child.chmod(0o644)
                _sync(child)
            return open_release(self._publish(home, folder, manifest, files))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _publish(
        self,
        home: Path,
        folder: Path,
        manifest: Callable[[int, dict[str, FileEntry]], Manifest],
        files: dict[str, FileEntry],
    ) -> Path:
        while True:
            taken = [int(c.name) for c in home.iterdir() if c.name.isdecimal()]
            version = max(taken, default=0) + 1
            encoded = msgspec.json.format(msgspec.json.encode(manifest(version, files)))
            (folder / MANIFEST).write_bytes(encoded + b"\n")  # 2
            _sync(folder / MANIFEST)
            _sync(folder)
            try:
                folder.rename(home / str(version))  # 3
            except OSError:
                if not (home / str(version)).exists():
                    raise
                continue
            _sync(home)
            return home / str(version)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RegistryError(
            f"wanted a release name of a-z, 0-9, _ and -, at most 64, got {name!r}; rename it"
        )
    return name


def _sync(path: Path) -> None:
    """Bring a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
