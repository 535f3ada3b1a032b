"""A worker runs without the trainer's packages: torch must never be loaded, nor needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What the extras `train`, `demo` and `dev` bring, by the names they are imported under.
FORBIDDEN = ["torch", "transformers", "safetensors", "onnx", "onnxscript", "noida_db", "pytest"]

#: Imports every module of `stream` and `export`, with what is forbidden out of reach.
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # importing it raises ImportError
import export, stream
for package in (export, stream):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        trainers = {"export.parity", "export.to_onnx"}
        if found.name not in trainers | {"stream.bench.rival_quix"}:  # a file for elsewhere
            importlib.import_module(found.name)
loaded = sorted({name.split(".")[0] for name, module in sys.modules.items() if module})
print(" ".join(loaded))
"""


def test_every_module_that_a_worker_needs_imports_where_the_trainers_packages_are_not():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *FORBIDDEN], capture_output=True, text=True, cwd=ROOT
    )

    assert done.returncode == 0, done.stderr
    assert "models" not in done.stdout.split()


def test_a_worker_that_could_load_torch_does_not():
    code = "import sys, stream.worker, stream.cli; print(*sorted(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "onnx", "models"} & set(done.stdout.split())


def test_without_the_trainers_packages_its_verbs_say_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None;"
        "from stream.cli import main; main(['train', '--data', 'x', '--format', 'jsonl'])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 2
    assert "needs torch, transformers: install driftline[train,cpu]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_extras_of_a_worker_bring_no_training():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]

    names = {requirement.split(">")[0].split("=")[0].split("[")[0] for requirement in wanted}

    assert not names & {"torch", "transformers", "safetensors", "onnx", "onnxscript"}
    assert "onnxruntime" in names and "onnxruntime-gpu" not in names


@pytest.mark.slow
def test_a_fresh_environment_with_the_worker_alone_imports_all_of_it(tmp_path):
    """Downloads what a worker needs, about 100 MB where nothing is cached."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True, system_site_packages=False)
    python = environment / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-input", f"{ROOT}[cpu]"], check=True
    )

    done = subprocess.run([python, "-c", IMPORT_ALL], capture_output=True, text=True, cwd=tmp_path)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "freeze"], capture_output=True, text=True
    )
    version = subprocess.run(
        [environment / "bin" / "driftline", "--version"], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert not set(FORBIDDEN) & set(done.stdout.split())
    installed = {line.split("==")[0].lower() for line in listed.stdout.splitlines()}
    assert not installed & {"torch", "transformers", "safetensors", "onnx", "onnxscript"}
    assert version.returncode == 0 and "driftline" in version.stdout


def test_nothing_is_reported_to_the_vendor_of_onnx_runtime(tmp_path):
    """Its telemetry, on by default, begins with a file of its own in the temporary folder."""
    done = subprocess.run(
        [sys.executable, "-c", "import os, stream.worker; print(os.environ['HOME'])"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]},
    )

    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_onnx_runtime_is_imported_in_one_place_only():
    importing = [
        path.relative_to(ROOT).as_posix()
        for package in ("stream", "export", "models")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(import|from) onnxruntime", path.read_text(), re.MULTILINE)
    ]

    assert importing == ["export/runtime.py"]
