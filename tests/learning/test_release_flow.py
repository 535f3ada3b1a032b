"""From a trained model to a release on disk that a worker can trust."""

from __future__ import annotations

import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import QUICK, corpus_of, made_up_events

from export.parity import Golden, golden_difference, rank_difference, read_golden, run_graph
from export.registry import Registry
from export.release import BrokenReleaseError, open_release
from export.to_onnx import RANK_INPUTS
from models.corpus import Corpus
from models.network import DriftlineModel, LiveInputs, RankGraph
from models.pipeline import Trained, train_cold, train_warm
from models.publish import Origin, Published, load_former, publish


def sessions(path: Path) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    return tuple(
        ort.InferenceSession(str(path / name), providers=["CPUExecutionProvider"])
        for name in ("model.onnx", "item_tower.onnx")
    )


def test_a_release_holds_every_file_that_its_manifest_names(published: Published) -> None:
    release = open_release(published.release.path)

    assert set(release.manifest.files) == {
        "model.onnx",
        "item_tower.onnx",
        "catalogue.json",
        "config.json",
        "model.safetensors",
        "metrics.json",
        "golden.npz",
    }
    assert release == published.release
    assert release.event_types == {"click": 1}
    assert release.manifest.lineage.offsets == {"user-events": {"0": (0, 3000)}}


def test_all_gates_of_a_good_release_hold(published: Published) -> None:
    assert published.refusals == []
    assert published.gates["parity"].value <= 1e-4


def test_the_graphs_give_their_golden_outputs(published: Published) -> None:
    golden = read_golden(published.release.path)

    assert golden_difference(golden, *sessions(published.release.path)) <= 1e-6


def test_golden_vectors_show_a_changed_weight(published: Published) -> None:
    golden = read_golden(published.release.path)
    changed = {name: array.copy() for name, array in golden.rank_inputs.items()}
    changed["item_output"] *= 1.5
    damaged = Golden(changed, golden.rank_outputs, golden.tower_inputs, golden.tower_outputs)

    assert golden_difference(damaged, *sessions(published.release.path)) > 1e-4


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_release_with_one_flipped_bit_is_refused(
    published: Published, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "1"
    shutil.copytree(published.release.path, folder)
    file = folder / data.draw(st.sampled_from(sorted(published.release.manifest.files)))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)

    with pytest.raises(BrokenReleaseError, match="sha256"):
        open_release(folder)


def test_a_release_without_one_of_its_files_is_refused(
    published: Published, tmp_path: Path
) -> None:
    shutil.copytree(published.release.path, tmp_path / "1")
    (tmp_path / "1" / "model.onnx").unlink()

    with pytest.raises(BrokenReleaseError, match=r"model\.onnx"):
        open_release(tmp_path / "1")


def test_the_model_folder_follows_transformers_conventions(
    published: Published, trained: Trained
) -> None:
    model = DriftlineModel.from_pretrained(published.release.path)

    for name, weight in trained.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 5),
    T=st.integers(1, 50),
    V=st.integers(1, 300),
    K=st.integers(1, 40),
    S=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_graph_gives_what_the_model_gives_for_any_sizes(
    published: Published, trained: Trained, B: int, T: int, V: int, K: int, S: int, seed: int
) -> None:
    inputs = random_inputs(B, T, V, K, S, trained.model.config.width, seed)

    with torch.no_grad():
        outputs = RankGraph(trained.model.eval())(
            *(torch.from_numpy(inputs[name]) for name in RANK_INPUTS)
        )
    wanted = {n: o.numpy() for n, o in zip(("rows", "scores", "parts"), outputs, strict=True)}
    got = run_graph(sessions_of(published), inputs)

    assert rank_difference(wanted, got) <= 1e-4
    forbidden = np.zeros((B, V + 1), dtype=bool)
    np.put_along_axis(forbidden, inputs["seen_rows"], True, axis=1)
    forbidden[:, :V] |= inputs["known"] == 0
    listed = np.take_along_axis(forbidden, got["rows"], axis=1)
    assert (got["scores"][listed] == 0).all()
    assert (np.diff(got["scores"], axis=1) <= 0).all()
    np.testing.assert_allclose(
        got["parts"].sum(axis=0)[~listed], got["scores"][~listed], rtol=1e-4, atol=1e-7
    )


_sessions: dict[Path, ort.InferenceSession] = {}


def sessions_of(published: Published) -> ort.InferenceSession:
    path = published.release.path
    if path not in _sessions:
        _sessions[path] = sessions(path)[0]
    return _sessions[path]


def random_inputs(
    B: int, T: int, V: int, K: int, S: int, d: int, seed: int
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "history_rows": rng.integers(0, V, (B, T)),
        "history_types": rng.integers(0, 2, (B, T)),
        "history_age_buckets": rng.integers(0, 33, (B, T)),
        "history_length": rng.integers(0, T + 1, B),
        "gate_features": rng.random((B, 7), dtype=np.float32),
        "popularity": rng.dirichlet(np.ones(V), 2).astype(np.float32),
        "chain_rows": rng.integers(0, V, (B, K)),
        "chain_weights": rng.dirichlet(np.ones(K), (2, B)).astype(np.float32),
        "known": (rng.random(V) < 0.8).astype(np.float32),
        "seen_rows": rng.integers(0, V + 1, (B, S)),
        "item_input": rng.standard_normal((V, d)).astype(np.float32),
        "item_output": rng.standard_normal((V, d)).astype(np.float32),
        "k": np.array([rng.integers(1, V + 1)]),
    }


@settings(max_examples=25, deadline=None)
@given(
    V=st.integers(1, 60),
    known_share=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_scores_are_live_shares_mixed_with_the_softmax_of_the_logits(
    trained: Trained, V: int, known_share: float, seed: int
) -> None:
    model = deepcopy(trained.model).eval()
    model.model_share.fill_(0.6)
    inputs = random_inputs(3, 5, V, 20, V, model.config.width, seed)
    inputs["known"] = (np.random.default_rng(seed).random(V) < known_share).astype(np.float32)
    live = LiveInputs(*(torch.from_numpy(inputs[name]) for name in LiveInputs._fields))

    with torch.no_grad():
        learned = torch.softmax(model(live), dim=-1)
        lists = model.rank(live, V)

    chain = torch.zeros(3, V).scatter_add(1, live.chain_rows, live.chain_weights[0])
    counted = 0.7 * live.popularity[0] + 0.3 * chain
    wanted = torch.where(model.allowed(live), 0.4 * counted + 0.6 * learned, 0.0)
    scores = torch.zeros(3, V).scatter(1, lists.rows, lists.scores)
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-6)


def test_where_nothing_may_be_listed_every_score_is_zero(
    published: Published, trained: Trained
) -> None:
    inputs = random_inputs(2, 4, 50, 6, 50, trained.model.config.width, seed=7)
    inputs["known"][:] = 1
    inputs["seen_rows"][0] = np.arange(50)  # the first user has seen everything
    inputs["seen_rows"][1] = 50
    inputs["item_output"] *= 1e4  # logits that a plain exponential would overflow at
    nothing_known = inputs | {"known": np.zeros(50, dtype=np.float32)}
    session = sessions_of(published)

    some, nothing = run_graph(session, inputs), run_graph(session, nothing_known)

    assert (some["scores"][0] == 0).all()
    assert (some["scores"][1] > 0).any()
    assert (nothing["scores"] == 0).all()
    for outputs in (some, nothing):
        assert np.isfinite(outputs["scores"]).all() and np.isfinite(outputs["parts"]).all()


def test_padding_does_not_change_a_list(published: Published, trained: Trained) -> None:
    short = random_inputs(3, 4, 50, 6, 2, trained.model.config.width, seed=7)
    padded = dict(short)
    for name, fill in (("history_rows", 0), ("history_types", 0), ("history_age_buckets", 0)):
        padded[name] = np.pad(short[name], ((0, 0), (0, 9)), constant_values=fill)
    padded["chain_rows"] = np.pad(short["chain_rows"], ((0, 0), (0, 5)))
    padded["chain_weights"] = np.pad(short["chain_weights"], ((0, 0), (0, 0), (0, 5)))
    padded["seen_rows"] = np.pad(short["seen_rows"], ((0, 0), (0, 4)), constant_values=50)
    session = sessions_of(published)

    assert rank_difference(run_graph(session, short), run_graph(session, padded)) <= 1e-6


def test_an_unknown_item_is_placed_by_its_attributes(published: Published) -> None:
    release = published.release
    tower = sessions(release.path)[1]
    row = release.attributes["kind:2"]
    inputs = {"id_rows": np.array([-1, -1]), "attribute_rows": np.array([[row], [-1]])}

    item_input, item_output = tower.run(["item_input", "item_output"], inputs)

    assert np.abs(item_output[0]).max() > 0
    assert np.abs(item_input[1]).max() == np.abs(item_output[1]).max() == 0


def test_a_warm_release_goes_on_from_the_former_one(
    published: Published, registry: Registry
) -> None:
    grown = corpus_of(made_up_events(3600))
    former = load_former(published.release)

    trained = train_warm(grown, former, 3000, QUICK)
    origin = Origin({"user-events": {"0": (0, 3600)}}, published.release.version, 1)
    warm = publish(trained, grown, QUICK, origin, registry, "small")

    items = published.release.items
    assert warm.release.version == published.release.version + 1
    assert warm.release.items[: len(items)] == items
    assert warm.release.manifest.lineage.parent == published.release.version
    assert warm.metrics["everyone"]["popularity"]["n"] == 600
    assert warm.refusals == []
    assert registry.versions("small") == [published.release.version, warm.release.version]


def test_equal_lineage_gives_equal_weights(corpus: Corpus, trained: Trained) -> None:
    again = train_cold(corpus, QUICK)

    assert again.share == trained.share
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, trained.model.state_dict()[name]), name


def test_what_workers_import_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "import export.catalogue, export.datasets, export.event_types, export.features\n"
        "import export.gate, export.items, export.manifest, export.parity, export.registry\n"
        "import export.release, export.statistics\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_manifest_has_what_the_published_schema_wants(published: Published) -> None:
    manifest = msgspec.json.decode((published.release.path / "manifest.json").read_bytes())

    needed = {"schema", "name", "version", "created_at", "files", "inputs", "catalogue"}
    assert needed | {"lineage", "gates"} <= set(manifest)
    assert {"offsets", "code", "settings_sha256", "seed", "parent"} <= set(manifest["lineage"])
    assert [entry["name"] for entry in manifest["inputs"]] == [*LiveInputs._fields, "k"]
