"""Rank items for users: by the live statistics alone, or by a release's graph over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.errors import DriftlineError
from export.features import GATE_FEATURES
from export.items import ItemIndex, Rows
from export.release import Release
from export.runtime import ort
from stream.catalogue import Catalogue
from stream.history import hash32
from stream.requests import LiveTensors, RankRequests

#: More than asked for is ranked, and cut after items of equal score stand in an order of their
#: own: which of equals are listed must not depend on the order in which a worker met them.
TIE_MARGIN = 16
#: Items whose vectors are computed in one go.
_TOWER_BATCH = 4096


class DeviceError(DriftlineError):
    """The device that was asked for is not there."""


@dataclass(frozen=True, slots=True)
class RankedLists:
    """For B users the best items, best first; places that were not filled have a score of 0."""

    rows: Rows  # [B, k]
    scores: NDArray[np.float32]  # [B, k]
    parts: NDArray[np.float32]  # [3, B, k] popularity, chain and model part of each score

    def ordered(self, hashes: NDArray[np.uint64], k: int) -> RankedLists:
        """Equal scores in the order of the items' hashes, cut to `k`."""
        rows, scores, parts = self.rows, self.scores, self.parts
        # a graph's lists stand in order, and hardly ever hold equal scores
        others = np.flatnonzero(~(scores[:, :-1] > scores[:, 1:]).all(axis=1))
        if len(others):
            rows, scores, parts = rows.copy(), scores.copy(), parts.copy()
            order = np.lexsort((hashes[rows[others]], -scores[others]), axis=1)
            rows[others] = np.take_along_axis(rows[others], order, axis=1)
            scores[others] = np.take_along_axis(scores[others], order, axis=1)
            parts[:, others] = np.take_along_axis(parts[:, others], order[None], axis=2)
        # graphs of older releases give -1 to what may not be listed
        return RankedLists(rows[:, :k], np.maximum(scores[:, :k], 0.0), parts[:, :, :k])


class Ranker(Protocol):
    """What ranks. `name`, `version` and `sha256` go into every list."""

    name: str
    version: int
    sha256: str
    event_types: dict[int, int]

    def rank(self, requests: RankRequests, live: LiveTensors, k: int) -> RankedLists:
        """The `k` best for every user. Runs in a thread, one call at a time."""
        ...


@dataclass
class StatisticsRanker:
    """Popularity and chain, mixed; what ranks until there is a release."""

    popularity_share: float
    name: str = "live-statistics"
    version: int = 0
    sha256: str = ""
    event_types: dict[int, int] = field(default_factory=dict)

    def rank(self, requests: RankRequests, live: LiveTensors, k: int) -> RankedLists:
        """See Ranker."""
        share = np.float32(self.popularity_share)
        users, size = len(requests), len(live.known)
        scores = np.zeros((users, size + 1), dtype=np.float32)  # the last column takes the padding
        chain_shares = requests.chain_weights[0] * (np.float32(1) - share)
        np.add.at(scores, (np.arange(users)[:, None], requests.chain_rows), chain_shares)
        popularity = share * live.popularity[0]
        scores[:, :size] += popularity  # [B, V]
        scores[:, :size] *= live.known
        np.put_along_axis(scores, requests.seen_rows, 0.0, axis=1)
        k = min(k + TIE_MARGIN, size)
        rows = np.argpartition(-scores[:, :size], k - 1, axis=1)[:, :k]
        listed = np.take_along_axis(scores, rows, axis=1)
        shares = popularity[rows]
        parts = np.stack([shares, listed - shares, np.zeros_like(listed)])
        return RankedLists(rows, listed, np.where(listed > 0, parts, 0.0))


def available_providers(device: str) -> list[str]:
    """The execution providers for a device; raises DeviceError where it is not there."""
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    found = ort.get_available_providers()
    if provider not in found:
        raise DeviceError(
            f"wanted device {device} ({provider}), found providers {', '.join(found)}; install "
            "driftline[gpu] and not driftline[cpu] on a machine with CUDA, or set device = cpu"
        )
    return [provider]


def open_session(path: str, device: str, threads: int) -> Any:
    """An inference session that runs on the device asked for and on no other.

    Raises DeviceError if ONNX Runtime would fall back to another provider.
    """
    providers = available_providers(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=providers)
    if session.get_providers()[0] != providers[0]:
        raise DeviceError(
            f"wanted {providers[0]}, got {session.get_providers()}: the provider did not load; "
            "see the log of ONNX Runtime above, or set device = cpu"
        )
    return session


class ItemTable:
    """The items' vectors for one release, on the item index's rows; new items get theirs at once.

    `input` and `output` are [V, d]: what a history reads, and what a score is made with.
    """

    def __init__(self, release: Release, tower: Any, index: ItemIndex) -> None:
        self._tower = tower
        self._index = index
        self._row_in_release = {item: row for row, item in enumerate(release.items)}
        self._attributes = release.attributes
        width = int(tower.get_outputs()[0].shape[1])
        self._input = np.zeros((1024, width), dtype=np.float32)
        self._output = np.zeros((1024, width), dtype=np.float32)
        self.filled = 0  # rows that have vectors
        self._changes = 0  # of the catalogue that are taken in
        self.generation = 0  # grows whenever a vector changes

    def update(self, catalogue: Catalogue) -> None:
        """Compute the vectors of rows that are new or whose attributes changed."""
        size, changes = len(self._index), catalogue.changes
        rows = [row for row in catalogue.changed_since(self._changes) if row < self.filled]
        self._changes = changes
        rows += range(self.filled, size)
        if not rows:
            return
        if size > len(self._input):
            self._input, self._output = (
                np.concatenate([a, np.zeros((2 * size - len(a), a.shape[1]), dtype=np.float32)])
                for a in (self._input, self._output)
            )
        for start in range(0, len(rows), _TOWER_BATCH):
            self._compute(rows[start : start + _TOWER_BATCH], catalogue)
        self.filled = size
        self.generation += 1

    def slices(self, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The first `size` rows of both tables."""
        return self._input[:size], self._output[:size]

    def _compute(self, rows: list[int], catalogue: Catalogue) -> None:
        ids = [self._index.ids[row] for row in rows]
        known = [
            [self._attributes[a] for a in catalogue.attributes(item) if a in self._attributes]
            for item in ids
        ]
        attribute_rows = np.full((len(rows), max(1, *map(len, known))), -1, dtype=np.int64)
        for at, attributes in enumerate(known):
            attribute_rows[at, : len(attributes)] = attributes
        id_rows = np.array([self._row_in_release.get(item, -1) for item in ids], dtype=np.int64)
        self._input[rows], self._output[rows] = self._tower.run(
            ["item_input", "item_output"], {"id_rows": id_rows, "attribute_rows": attribute_rows}
        )


class ModelRanker:
    """A release's graph, with its tensors on the device.

    The item vectors stay on the device and are sent again when one changed; the live tensors are
    sent once for each position of the statistics.
    """

    def __init__(
        self, release: Release, index: ItemIndex, catalogue: Catalogue, device: str, threads: int
    ) -> None:
        self.name, self.version, self.sha256 = release.name, release.version, release.sha256
        self.event_types = {hash32(kind): row for kind, row in release.event_types.items()}
        self._device = device
        self._session = open_session(str(release.path / "model.onnx"), device, threads)
        tower = open_session(str(release.path / "item_tower.onnx"), "cpu", threads)
        self.table = ItemTable(release, tower, index)
        self.table.update(catalogue)
        self._resident: dict[str, Any] = {}
        self._resident_for: tuple[int, int] = (-1, -1)  # size, generation of the item vectors
        self._live: LiveTensors | None = None
        self._binding = self._session.io_binding()

    def rank(self, requests: RankRequests, live: LiveTensors, k: int) -> RankedLists:
        """See Ranker."""
        self._make_resident(live)
        inputs = {
            name: np.ascontiguousarray(getattr(requests, name)) for name in RankRequests.__slots__
        }
        inputs["k"] = np.array([min(k + TIE_MARGIN, len(live.known))], dtype=np.int64)
        binding = self._binding
        for name, array in inputs.items():  # not copied: they have to live until the graph has run
            binding.bind_cpu_input(name, array)
        for name in ("rows", "scores", "parts"):  # anew: they keep the shape of the last call
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        rows, scores, parts = binding.copy_outputs_to_cpu()
        return RankedLists(rows, scores, parts)

    def warm_up(self, users: int) -> None:
        """Rank once for so many users without a history, so that the first real call is fast."""
        size = self.table.filled
        if not size:
            return
        nobody = np.zeros((users, 1), dtype=np.int64)
        requests = RankRequests(
            nobody,
            nobody,
            nobody,
            nobody[:, 0],
            np.zeros((users, GATE_FEATURES), dtype=np.float32),
            nobody,
            np.zeros((2, users, 1), dtype=np.float32),
            nobody + size,
        )
        popularity = np.zeros((2, size), dtype=np.float32)
        self.rank(requests, LiveTensors(popularity, np.ones(size, dtype=np.float32), {}, 0), 1)

    def _make_resident(self, live: LiveTensors) -> None:
        """Send to the device what changed since the last call."""
        size = len(live.known)
        if self._resident_for != (size, self.table.generation):
            item_input, item_output = self.table.slices(size)
            self._bind_resident({"item_input": item_input, "item_output": item_output})
            self._resident_for = (size, self.table.generation)
        if live is not self._live:
            self._live = live
            self._bind_resident({"popularity": live.popularity, "known": live.known})

    def _bind_resident(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)
            self._resident[name] = value
            self._binding.bind_ortvalue_input(name, value)
