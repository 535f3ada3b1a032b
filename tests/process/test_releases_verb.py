"""`driftline releases`: what is in the registry, and a release made live by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
from engine import Engine, Worker, driftline, event, wait_until

from export.manifest import Gate
from export.registry import Registry
from stream.demo.release import BUNDLED_NAME, BUNDLED_REGISTRY

NO_BROKER = "127.0.0.1:1"


def fill_registry(root: Path, second_gates: dict[str, Gate] | None = None) -> None:
    """The release that comes with the demo, twice; the second one with gates of its own."""
    shutil.copytree(BUNDLED_REGISTRY, root)
    registry = Registry(root)
    first = registry.open(BUNDLED_NAME)

    def copy_into(folder: Path) -> None:
        for name in first.manifest.files:
            shutil.copy(first.path / name, folder)

    registry.write(
        BUNDLED_NAME,
        copy_into,
        lambda version, files: msgspec.structs.replace(
            first.manifest,
            version=version,
            files=files,
            gates=second_gates or first.manifest.gates,
        ),
    )
    assert registry.versions(BUNDLED_NAME) == [1, 2]


def listed(*options: object) -> tuple[dict[int, bool], str]:
    """Version -> whether it is live, and what was said beside."""
    done = driftline("releases", "list", *options, "--json")
    assert done.returncode == 0, done.stderr
    return {line["version"]: line["is_live"] for line in json.loads(done.stdout)}, done.stderr


def announce_and_await(engine: Engine, worker: Worker, *version: int) -> None:
    done = driftline("releases", "announce", *version, *engine.options)
    assert done.returncode == 0, done.stderr
    (said,) = done.stdout.splitlines()
    ranks = f"release {said.split()[0]} ranks from now on"
    wait_until(lambda: ranks in worker.log(), engine.logs)


def test_workers_take_over_what_was_announced_last_and_go_back_to_an_older_one(
    engine: Engine,
) -> None:
    fill_registry(engine.registry)
    engine.send((b"first", event("first", n, item_id=f"item-{n}")) for n in range(3))
    worker = engine.worker()
    worker.start()
    engine.wait_until_all_is_done()
    assert listed(*engine.options) == ({1: False, 2: False}, "")

    announce_and_await(engine, worker)
    assert listed(*engine.options)[0] == {1: False, 2: True}
    announce_and_await(engine, worker, 1)
    assert listed(*engine.options)[0] == {1: True, 2: False}

    said = driftline("releases", "list", *engine.options).stdout.splitlines()
    assert [line.split()[0] for line in said] == ["live", "2"]


def test_without_a_broker_the_list_is_there_and_nothing_is_announced(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    fill_registry(registry)
    options = ("--registry", registry, "--bootstrap", NO_BROKER)

    lines, said = listed(*options)
    done = driftline("releases", "announce", *options)

    assert lines == {1: False, 2: False}
    assert "not known" in said
    assert done.returncode == 2
    assert NO_BROKER in done.stderr
    assert "Traceback" not in done.stderr


def test_a_release_that_a_gate_has_refused_is_announced_only_despite_it(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    fill_registry(registry, {"parity": Gate(0.5, 1e-5, holds=False)})
    options = ("--registry", registry, "--bootstrap", NO_BROKER)

    refused = driftline("releases", "announce", *options)
    older = driftline("releases", "announce", 1, *options)
    wanted = driftline("releases", "announce", "--despite-gates", *options)

    assert refused.returncode == older.returncode == wanted.returncode == 2
    assert "parity is 0.5, bound 1e-05" in refused.stderr
    assert "--despite-gates" in refused.stderr
    for asked in (older, wanted):  # no gate, but the broker is missing
        assert f"wanted to say at {NO_BROKER}" in asked.stderr


def test_a_release_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    fill_registry(registry)

    done = driftline("releases", "announce", 7, "--registry", registry, "--bootstrap", NO_BROKER)

    assert done.returncode == 2
    assert "driftline/7" in done.stderr
    assert "[1, 2]" in done.stderr
