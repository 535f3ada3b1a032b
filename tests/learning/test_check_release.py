"""A release ranks only after a process of its own has found that it computes what it should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from export.manifest import file_entry
from models.publish import Published


def checked(path: Path, budget_ms: float = 10_000) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream.check_release", str(path), str(budget_ms)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def with_changed_file(published: Published, folder: Path, name: str, data: bytes) -> Path:
    """The release with one file replaced, and a manifest that names the new checksum."""
    path = folder / "changed"
    shutil.copytree(published.release.path, path)
    (path / name).write_bytes(data)
    manifest = msgspec.json.decode((path / "manifest.json").read_bytes())
    manifest["files"][name] = msgspec.to_builtins(file_entry(path / name))
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return path


def test_a_good_release_passes(published: Published) -> None:
    assert checked(published.release.path).returncode == 0


@pytest.mark.parametrize("name", ["model.onnx", "item_tower.onnx", "golden.npz"])
def test_a_file_that_is_no_graph_is_refused_in_one_line(
    published: Published, tmp_path: Path, name: str
) -> None:
    path = with_changed_file(published, tmp_path, name, b"\x08\x07" + b"no graph" * 100)

    done = checked(path)

    assert done.returncode == 1
    assert str(path) in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_release_that_computes_other_numbers_is_refused(
    published: Published, tmp_path: Path
) -> None:
    with np.load(published.release.path / "golden.npz") as arrays:
        golden = {name: arrays[name].copy() for name in arrays.files}
    golden["graph.out.scores"] *= np.float32(1.01)
    np.savez(tmp_path / "golden.npz", **golden)
    path = with_changed_file(
        published, tmp_path, "golden.npz", (tmp_path / "golden.npz").read_bytes()
    )

    done = checked(path)

    assert done.returncode == 1
    assert "golden" in done.stdout


def test_a_release_over_its_budget_is_refused(published: Published) -> None:
    done = checked(published.release.path, budget_ms=0.001)

    assert done.returncode == 1
    assert "release_budget_ms" in done.stdout
