"""Look at this machine: Python, packages, execution providers, disk, the port of metrics."""

from __future__ import annotations

import errno
import importlib.metadata as metadata
import os
import re
import shutil
import socket
import sys
import urllib.request
from pathlib import Path

from export.errors import DriftlineError
from stream.doctor.findings import Finding, Status
from stream.settings import Settings

_OLDEST_PYTHON = (3, 11)
#: Both bring the same module: the one installed last wins, and removing either breaks both.
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
#: RocksDB compacts into new files before it deletes the old ones.
_LITTLE_SPACE_BYTES, _NO_SPACE_BYTES = 2 * 2**30, 256 * 2**20
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:==([^,;\s]+))?")


def check_python() -> Finding:
    """The interpreter is new enough, and the system one that the engine is tested on."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        wanted = ".".join(map(str, _OLDEST_PYTHON))
        return Finding("python", "fail", f"{found}, wanted {wanted} or newer", "install a newer")
    if sys.platform != "linux":
        advice = "workers are tested on Linux alone"
        return Finding("python", "warn", f"{found} on {sys.platform}", advice)
    return Finding("python", "ok", f"{found} on Linux")


def check_packages() -> Finding:
    """Everything a worker imports is there, pinned packages in the version they are pinned to."""
    runtimes = [name for name in _RUNTIMES if _version(name)]
    if len(runtimes) > 1:
        return Finding(
            "packages",
            "fail",
            "onnxruntime and onnxruntime-gpu are both installed, and break one another",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install driftline[cpu] or "
            "driftline[gpu]",
        )
    if not runtimes:
        advice = "install driftline[cpu], or driftline[gpu] on a machine with CUDA"
        return Finding("packages", "fail", "there is no ONNX Runtime", advice)
    wrong = []
    for requirement in metadata.requires("driftline") or []:
        name, pinned = _requirement(requirement)
        found = _version(name) if name else None
        if name and (found is None or pinned not in ("", found)):
            wrong.append(f"{name} {found or 'missing'}" + (f" (not {pinned})" if pinned else ""))
    if wrong:
        advice = "install driftline again: pip install -U 'driftline[cpu]'"
        return Finding("packages", "fail", ", ".join(wrong), advice)
    said = f"all there, {runtimes[0]} {_version(runtimes[0])}"
    return Finding("packages", "ok", said)


def _requirement(text: str) -> tuple[str, str]:
    """Name and pinned version ("" for none) of a requirement; ("", "") for one of an extra."""
    found = _REQUIREMENT.match(text)
    if found is None or "extra ==" in text:
        return "", ""
    return found[1], found[2] or ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_provider(settings: Settings) -> Finding:
    """ONNX Runtime can be imported, and offers the device of the settings."""
    try:
        from stream.ranker import available_providers

        available_providers(settings.device)
        from export.runtime import ort
    except DriftlineError as error:
        return Finding("provider", "fail", str(error))
    except ImportError as error:
        advice = "install driftline[cpu], or driftline[gpu] on a machine with CUDA"
        return Finding("provider", "fail", f"ONNX Runtime cannot be imported: {error}", advice)
    providers = ", ".join(ort.get_available_providers())
    if settings.device == "cpu" and "CUDAExecutionProvider" in providers:
        advice = "--device cuda would use the GPU"
        return Finding("provider", "ok", f"device cpu; there are {providers}: {advice}")
    return Finding("provider", "ok", f"device {settings.device}; there are {providers}")


def check_disk(settings: Settings) -> Finding:
    """The data directory and the registry can be written, and there is space for state to grow."""
    for name, folder in (("data_dir", settings.data_dir), ("registry", settings.registry)):
        path = Path(folder)
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            said = f"wanted a folder to write to, got {path}"
            option = "--" + name.replace("_", "-")
            return Finding("disk", "fail", said, f"set `{name}` ({option}) to one of this user")
        free = shutil.disk_usage(there).free
        if free < _LITTLE_SPACE_BYTES:
            said = f"{free / 2**20:,.0f} MiB are free for {path}"
            status: Status = "fail" if free < _NO_SPACE_BYTES else "warn"
            return Finding("disk", status, said, f"make room, or set `{name}` to another disk")
    free = shutil.disk_usage(there).free
    said = f"{settings.data_dir} and {settings.registry} can be written"
    return Finding("disk", "ok", f"{said}, {free / 2**30:,.0f} GiB are free")


def check_port(settings: Settings) -> Finding:
    """The port of the metrics is free, or a worker answers there."""
    port = settings.metrics_port
    if not port:
        return Finding("ports", "ok", "metrics are off (`metrics_port` 0); a worker needs no port")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return _taken_port(port, error)
    return Finding("ports", "ok", f"metrics_port {port} is free")


def _taken_port(port: int, error: OSError) -> Finding:
    if error.errno != errno.EADDRINUSE:
        said = f"metrics_port {port}: {error.strerror}"
        return Finding("ports", "fail", said, "set `metrics_port` to one above 1024")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            is_worker = b"driftline_ready" in answer.read(2**20)
    except (OSError, ValueError):
        is_worker = False
    if is_worker:
        return Finding("ports", "ok", f"a worker answers at metrics_port {port}")
    said = f"something that is no worker listens at metrics_port {port}"
    return Finding("ports", "fail", said, "end it, or set `metrics_port` to a free one")
