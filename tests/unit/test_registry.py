"""Releases are written once, whole, and under the next version."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from export.catalogue import ReleaseCatalogue
from export.manifest import CatalogueReference, FileEntry, Lineage, Manifest
from export.registry import Registry, RegistryError
from export.release import BrokenReleaseError, ReleaseError, open_release


def fill(folder: Path) -> None:
    for name in ("model.onnx", "item_tower.onnx", "golden.npz"):
        (folder / name).write_bytes(name.encode())
    catalogue = ReleaseCatalogue(["a", "b"], ["category:x"], ["", "click", "rate"])
    (folder / "catalogue.json").write_bytes(msgspec.json.encode(catalogue))


def manifest(version: int, files: dict[str, FileEntry]) -> Manifest:
    return Manifest(
        schema="driftline.manifest/1",
        name="shop",
        version=version,
        created_at=1,
        files=files,
        inputs=[],
        catalogue=CatalogueReference(files["catalogue.json"].sha256, 2),
        lineage=Lineage({"user-events": {"0": (0, 9)}}, "1", "0", 1, None),
        gates={},
        opset=18,
        precision="fp32",
    )


def test_versions_count_up_and_the_newest_is_opened(tmp_path: Path) -> None:
    registry = Registry(tmp_path)

    versions = [registry.write("shop", fill, manifest).version for _ in range(3)]

    assert versions == registry.versions("shop") == [1, 2, 3]
    assert registry.newest("shop") == 3
    release = registry.open("shop")
    assert release.path == registry.path("shop", 3)
    assert release.items == ["a", "b"]
    assert release.event_types == {"click": 1, "rate": 2}
    assert release.attributes == {"category:x": 0}


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        Registry(tmp_path).write("shop", fail, manifest)

    assert list((tmp_path / "shop").iterdir()) == []


def test_a_half_written_release_is_no_release(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write("shop", fill, manifest)
    (tmp_path / "shop" / "2").mkdir()

    assert registry.versions("shop") == [1]
    assert registry.write("shop", fill, manifest).version == 3


def test_a_version_that_another_process_took_is_passed_over(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    asked: list[int] = []

    def racing(version: int, files: dict[str, FileEntry]) -> Manifest:
        if not asked:
            registry.write("shop", fill, manifest)
        asked.append(version)
        return manifest(version, files)

    release = registry.write("shop", fill, racing)

    assert asked == [1, 2]
    assert (release.version, release.manifest.version) == (2, 2)


@pytest.mark.parametrize("name", ["", "Shop", "../shop", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="rename"):
        Registry(tmp_path).versions(name)


def test_an_empty_registry_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="driftline train"):
        Registry(tmp_path).open("shop")


def test_a_folder_without_a_manifest_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"manifest\.json"):
        open_release(tmp_path)


def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": "driftline.manifest/2"}')

    with pytest.raises(BrokenReleaseError, match="wanted a manifest"):
        open_release(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    path = registry.write("shop", fill, manifest).path
    text = (path / "manifest.json").read_text().replace('"golden.npz"', '"../golden.npz"')
    (path / "manifest.json").write_text(text)

    with pytest.raises(BrokenReleaseError):
        open_release(path)
