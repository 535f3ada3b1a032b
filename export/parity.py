"""Compare what an exported graph computes with what it should, here and on any later machine.

Golden vectors are real inputs with the outputs that the trained model itself gave for them. A
worker runs them through the graph before it uses a release: a damaged file can load and silently
compute other numbers.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import DriftlineError
from export.release import GOLDEN

Arrays = dict[str, NDArray[Any]]

#: The largest difference between a score in torch and in ONNX Runtime.
TOLERANCE = 1e-4
_PREFIXES = {
    "rank_inputs": "graph.in.",
    "rank_outputs": "graph.out.",
    "tower_inputs": "tower.in.",
    "tower_outputs": "tower.out.",
}
#: Scores closer than this may stand in either order.
_TIE = 1e-6


class GoldenError(DriftlineError):
    """The golden vectors of a release cannot be read."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and wanted outputs of the two graphs of a release, by name."""

    rank_inputs: Arrays
    rank_outputs: Arrays
    tower_inputs: Arrays
    tower_outputs: Arrays

    def write(self, folder: Path) -> None:
        """Write golden.npz: arrays named `graph.in.<name>`, `tower.out.<name>` and so on."""
        arrays = {
            _PREFIXES[part] + name: array
            for part in self.__slots__
            for name, array in getattr(self, part).items()
        }
        np.savez_compressed(folder / GOLDEN, **arrays)


def read_golden(folder: Path) -> Golden:
    """Read a release's golden vectors; raises GoldenError if they cannot be read."""
    parts: dict[str, Arrays] = {part: {} for part in Golden.__slots__}
    try:
        with np.load(folder / GOLDEN, allow_pickle=False) as arrays:
            for part, prefix in _PREFIXES.items():
                names = [key for key in arrays.files if key.startswith(prefix)]
                parts[part] = {key.removeprefix(prefix): arrays[key] for key in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise GoldenError(
            f"{folder / GOLDEN}: wanted golden vectors, got: {error}; export the release again"
        ) from error
    return Golden(**parts)


def golden_difference(golden: Golden, rank_session: Any, tower_session: Any) -> float:
    """The largest difference between the golden outputs and those of two ONNX Runtime sessions.

    Infinite where a graph gives other items, or what is not a number.
    """
    return max(
        rank_difference(golden.rank_outputs, run_graph(rank_session, golden.rank_inputs)),
        largest_difference(golden.tower_outputs, run_graph(tower_session, golden.tower_inputs)),
    )


def run_graph(session: Any, inputs: Arrays) -> Arrays:
    """All outputs of a graph, by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def rank_difference(wanted: Arrays, got: Arrays) -> float:
    """The largest difference of scores and parts; infinite where other items are listed.

    Items of almost equal scores may stand in either order.
    """
    difference = largest_difference({"scores": wanted["scores"]}, {"scores": got["scores"]})
    if not np.isfinite(difference):
        return difference
    scores = wanted["scores"].astype(np.float64)
    apart = np.full((scores.shape[0], scores.shape[1] + 1), True)
    apart[:, 1:-1] = np.abs(np.diff(scores, axis=1)) > _TIE
    # The last place is left out: its tie may stand beyond the list.
    is_alone = (apart[:, :-1] & apart[:, 1:])[:, :-1] & (scores[:, :-1] > 0)
    same = (wanted["rows"] == got["rows"])[:, :-1]
    if not same[is_alone].all():
        return float("inf")
    parts = np.abs(wanted["parts"] - got["parts"])[:, :, :-1][:, is_alone]
    return max(difference, float(parts.max(initial=0.0)))


def largest_difference(wanted: Arrays, got: Arrays) -> float:
    """The largest absolute difference of arrays of equal names; infinite for other shapes."""
    worst = 0.0
    for name, array in wanted.items():
        other = got.get(name)
        if other is None or other.shape != array.shape or not np.isfinite(other).all():
            return float("inf")
        worst = max(worst, float(np.abs(array - other).max(initial=0.0)))
    return worst
