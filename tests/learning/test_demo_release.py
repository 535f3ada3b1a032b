"""The release that the demo brings along: whole, small, and better than counting."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from export.registry import Registry
from export.release import METRICS, BrokenReleaseError, open_release
from models.evaluate import BASELINE, CHAIN, MODEL, POPULARITY, rank_examples, table
from models.offline import corpus_of_data
from models.publish import load_former
from models.settings import TrainerSettings
from stream.demo.catalogue import demo_items
from stream.demo.release import BUNDLED_NAME, BUNDLED_REGISTRY, CLICKS, SEED, USERS, event_lines

#: Users and clicks that the release was not trained on; so many of the newest are ranked.
FRESH_SEED, FRESH_CLICKS, RANKED = 99, 15_000, 2000


def test_it_is_whole_small_and_says_where_it_comes_from() -> None:
    release = Registry(BUNDLED_REGISTRY).open(BUNDLED_NAME)

    files = [path for path in BUNDLED_REGISTRY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert set(release.items) <= {item.item_id for item in demo_items()}
    assert all(gate.holds for gate in release.manifest.gates.values())
    (source,) = release.manifest.lineage.offsets
    assert source == f"simulator-users-{USERS}-seed-{SEED}-clicks-{CLICKS}.jsonl"
    assert release.manifest.lineage.offsets[source] == {"0": (0, CLICKS)}


def test_no_graph_of_it_tells_of_the_machine_that_made_it() -> None:
    release = Registry(BUNDLED_REGISTRY).open(BUNDLED_NAME)

    for graph in release.path.glob("*.onnx"):
        assert b".py" not in graph.read_bytes(), graph


def test_a_single_changed_byte_of_it_is_refused(tmp_path: Path) -> None:
    source = Registry(BUNDLED_REGISTRY).open(BUNDLED_NAME).path
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph = tmp_path / "model.onnx"
    broken = bytearray(graph.read_bytes())
    broken[len(broken) // 2] ^= 1
    graph.write_bytes(broken)

    with pytest.raises(BrokenReleaseError, match=r"model\.onnx"):
        open_release(tmp_path)


def test_it_ranks_users_it_never_saw_better_than_the_live_baselines(tmp_path: Path) -> None:
    path = tmp_path / "fresh.jsonl"
    with path.open("wb") as file:
        file.writelines(event_lines(400, FRESH_SEED, FRESH_CLICKS))
    corpus, _ = corpus_of_data(path, "jsonl", None, TrainerSettings())
    release = Registry(BUNDLED_REGISTRY).open(BUNDLED_NAME)
    former = load_former(release)
    share = msgspec.json.decode((release.path / METRICS).read_bytes())["model_share"]
    batches = corpus.batches(former.catalogue)

    newest = np.arange(FRESH_CLICKS - RANKED, FRESH_CLICKS)
    ranking = rank_examples(former.model, batches, newest, (share,))

    figures = table(ranking, share, returning=True)
    for baseline in (POPULARITY, CHAIN, BASELINE):
        for measure in ("HR@10", "HR@50"):
            assert figures[MODEL][measure] >= figures[baseline][measure], figures
