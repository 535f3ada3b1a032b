"""Write a trained model as a release: graphs, golden vectors, weights, figures, manifest."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.random import Generator
from transformers.utils.logging import disable_progress_bar

from export.catalogue import ReleaseCatalogue
from export.features import OTHER_TYPE
from export.gate import failures, release_gates
from export.manifest import CatalogueReference, FileEntry, Gate, Lineage, Manifest
from export.parity import Arrays, Golden, largest_difference, rank_difference, run_graph
from export.registry import Registry
from export.release import CATALOGUE, GRAPH, METRICS, TOWER, Release, ReleaseError
from export.runtime import ort
from export.to_onnx import (
    OPSET,
    RANK_OUTPUTS,
    TOWER_INPUTS,
    TOWER_OUTPUTS,
    export_ranking,
    export_tower,
    graph_inputs,
)
from models.corpus import Corpus
from models.evaluate import SHARES, ShareEvidence, differences, summary
from models.event_log import Ints
from models.network import DriftlineModel, LiveInputs, RankGraph
from models.pipeline import Former, PipelineSettings, Trained, parameters
from models.sequences import BatchMaker

#: Users and items of the golden vectors: enough to see a damaged weight, small on disk.
_GOLDEN_USERS, _GOLDEN_ITEMS, _GOLDEN_LISTED = 16, 1500, 50
#: Batches of this many users on which the graph is compared with the model.
_PARITY_BATCHES, _PARITY_USERS = 4, 64


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a release comes from: see `Lineage`. `offsets`: topic -> partition -> [from, to)."""

    offsets: dict[str, dict[str, tuple[int, int]]]
    parent: int | None
    now_ms: int


@dataclass(frozen=True, slots=True)
class Published:
    """A release on disk, and why it may not go live (empty if it may)."""

    release: Release
    gates: dict[str, Gate]
    metrics: dict[str, Any]

    @property
    def refusals(self) -> list[str]:
        return failures(self.gates)


def publish(
    trained: Trained,
    corpus: Corpus,
    settings: PipelineSettings,
    origin: Origin,
    registry: Registry,
    name: str,
) -> Published:
    """Export a model into the registry, prove the graphs, and measure its gates."""
    rng = np.random.default_rng(settings.seed)
    gates: dict[str, Gate] = {}
    metrics = _metrics(trained, rng)

    def fill(folder: Path) -> None:
        _write_files(trained, corpus, folder, rng, gates)
        (folder / METRICS).write_bytes(msgspec.json.format(msgspec.json.encode(metrics)))

    def manifest(version: int, files: dict[str, FileEntry]) -> Manifest:
        return _manifest(version, files, name, trained, corpus, settings, origin, gates)

    return Published(registry.write(name, fill, manifest), gates, metrics)


def _write_files(
    trained: Trained, corpus: Corpus, folder: Path, rng: Generator, gates: dict[str, Gate]
) -> None:
    model = trained.model.eval()
    disable_progress_bar()
    model.save_pretrained(folder)
    export_ranking(RankGraph(model), model.config.width, folder / GRAPH)
    export_tower(model.tower, folder / TOWER)
    (folder / CATALOGUE).write_bytes(msgspec.json.encode(trained.catalogue))
    batches = corpus.batches(trained.catalogue)
    parity = _prove(model, batches, folder, rng)
    is_finite = all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values())
    gates |= release_gates(parity, is_finite, differences(trained.validation, trained.share, rng))


def _manifest(
    version: int,
    files: dict[str, FileEntry],
    name: str,
    trained: Trained,
    corpus: Corpus,
    settings: PipelineSettings,
    origin: Origin,
    gates: dict[str, Gate],
) -> Manifest:
    times_ms = corpus.examples.events.times_ms
    encoded = msgspec.json.encode(asdict(settings), order="sorted")
    return Manifest(
        schema="driftline.manifest/1",
        name=name,
        version=version,
        created_at=origin.now_ms,
        files=files,
        inputs=graph_inputs(),
        catalogue=CatalogueReference(files[CATALOGUE].sha256, len(trained.catalogue.items)),
        lineage=Lineage(
            origin.offsets,
            code_version(),
            hashlib.sha256(encoded).hexdigest(),
            settings.seed,
            origin.parent,
            [int(times_ms[0]), int(times_ms[-1])] if len(times_ms) else [],
        ),
        gates=gates,
        opset=OPSET,
        precision="fp32",
    )


def _metrics(trained: Trained, rng: Generator) -> dict[str, Any]:
    return {
        "model_share": trained.share,
        "training_loss": trained.loss if np.isfinite(trained.loss) else None,
        "parameters": parameters(trained.model),
        **summary(trained.validation, trained.share, rng),
        "share_evidence": {
            "events": trained.evidence.events,
            "gains": trained.evidence.gains.tolist(),
            "squares": trained.evidence.squares.tolist(),
        },
    }


def _prove(model: DriftlineModel, batches: BatchMaker, folder: Path, rng: Generator) -> float:
    """Write golden vectors; returns the largest difference between the model and its graphs."""
    rank_session = _session(folder / GRAPH)
    tower_session = _session(folder / TOWER)
    differences = []
    for users, candidates in _samples(batches, rng):
        golden = golden_vectors(model, batches, users, candidates)
        ranked = run_graph(rank_session, golden.rank_inputs)
        vectors = run_graph(tower_session, golden.tower_inputs)
        if len(candidates) <= _GOLDEN_ITEMS:
            # What the graphs give, once they are proven: torch may order a tie in another way.
            replace(golden, rank_outputs=ranked, tower_outputs=vectors).write(folder)
        differences += [
            rank_difference(golden.rank_outputs, ranked),
            largest_difference(golden.tower_outputs, vectors),
        ]
    return max(differences)


def _samples(batches: BatchMaker, rng: Generator) -> Iterator[tuple[Ints, Ints]]:
    """(examples, items to rank): some over all items, and at last the golden ones."""
    x = batches.examples
    newest = np.arange(max(x.first, len(x) - 5000), len(x))
    items = np.flatnonzero(x.first_event < len(x))
    if len(items) > _GOLDEN_ITEMS:
        for _ in range(_PARITY_BATCHES):
            yield rng.choice(newest, min(_PARITY_USERS, len(newest)), replace=False), items
        items = np.sort(rng.choice(items, _GOLDEN_ITEMS, replace=False))
    yield rng.choice(newest, min(_GOLDEN_USERS, len(newest)), replace=False), items


@torch.no_grad()
def golden_vectors(
    model: DriftlineModel, batches: BatchMaker, numbers: Ints, candidates: Ints
) -> Golden:
    """What the model gives for these examples, in the terms of the two graphs."""
    batch = batches.batch(numbers, candidates)
    item_input, item_output = model.tower(batch.id_rows, batch.attribute_rows)
    # The graph has one axis for histories and for what is ranked: items of histories that are not
    # candidates are on it, not known.
    U, V = len(batch.id_rows), len(candidates)
    padded = torch.zeros(2, U)
    padded[:, :V] = batch.live.popularity[:, -1]
    known = torch.zeros(U)
    known[:V] = batch.live.known[-1]
    seen = batch.live.seen_rows
    live = batch.live._replace(
        popularity=padded,
        known=known,
        seen_rows=torch.where(seen >= V, U, seen),
        history_types=batch.live.history_types.clamp(min=OTHER_TYPE),
        item_input=item_input,
        item_output=item_output,
    )
    k = min(_GOLDEN_LISTED, U)
    return Golden(
        {**_numpy(LiveInputs._fields, live), "k": np.array([k], dtype=np.int64)},
        _numpy(RANK_OUTPUTS, model.rank(live, k)),
        _numpy(TOWER_INPUTS, (batch.id_rows, batch.attribute_rows)),
        _numpy(TOWER_OUTPUTS, (item_input, item_output)),
    )


def _numpy(names: tuple[str, ...], tensors: tuple[torch.Tensor, ...]) -> Arrays:
    return {
        name: np.ascontiguousarray(tensor.numpy())
        for name, tensor in zip(names, tensors, strict=True)
    }


def _session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_former(release: Release) -> Former:
    """The model of a release with its catalogue, to go on training from.

    Raises ReleaseError if its weights cannot be read.
    """
    types = ["", *release.event_types]  # row 0 is every other type
    try:
        model = DriftlineModel.from_pretrained(release.path)
    except (OSError, ValueError, RuntimeError) as error:
        raise ReleaseError(
            f"{release.path}: wanted weights to go on from, got: {error}; train from nothing"
        ) from error
    catalogue = ReleaseCatalogue(release.items, list(release.attributes), types)
    return Former(model, catalogue, _read_evidence(release.path / METRICS))


def _read_evidence(path: Path) -> ShareEvidence | None:
    """What the model's share was chosen by; None if it was measured in another way."""
    try:
        found = msgspec.json.decode(path.read_bytes())["share_evidence"]
        gains, squares = np.array(found["gains"]), np.array(found["squares"])
    except (OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return None
    if gains.shape != (len(SHARES), 2) or squares.shape != gains.shape:
        return None
    return ShareEvidence(float(found["events"]), gains, squares)


def code_version() -> str:
    """The commit this code is from where it lies in a repository, else the package's version."""
    version = metadata.version("driftline")
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{found.stdout.strip()}"
