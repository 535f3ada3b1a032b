"""Write the ranking graph and the item tower of a model as ONNX files.

The model comes as modules whose `forward` has the graphs' inputs, so that nothing here depends on
how it is built. Only this module and `parity` need torch.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from export.features import GATE_FEATURES
from export.manifest import GraphInput

OPSET = 18
TOWER_INPUTS = ("id_rows", "attribute_rows")
TOWER_OUTPUTS = ("item_input", "item_output")
RANK_OUTPUTS = ("rows", "scores", "parts")
#: Name of every input of the ranking graph, its type, and its shape; a letter varies.
RANK_INPUTS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "history_rows": ("int64", ("B", "T")),
    "history_types": ("int64", ("B", "T")),
    "history_age_buckets": ("int64", ("B", "T")),
    "history_length": ("int64", ("B",)),
    "gate_features": ("float32", ("B", GATE_FEATURES)),
    "popularity": ("float32", (2, "V")),
    "chain_rows": ("int64", ("B", "K")),
    "chain_weights": ("float32", (2, "B", "K")),
    "known": ("float32", ("V",)),
    "seen_rows": ("int64", ("B", "S")),
    "item_input": ("float32", ("V", "d")),
    "item_output": ("float32", ("V", "d")),
    "k": ("int64", (1,)),
}


def export_ranking(graph: nn.Module, width: int, path: Path) -> None:
    """Write the ranking graph; all sizes but `width` (d) stay open."""
    sizes: dict[str, int] = {"B": 3, "T": 5, "V": 37, "K": 11, "S": 7, "d": width}
    arguments = tuple(_example(name, sizes) for name in RANK_INPUTS)
    open_sizes = {letter: Dim(letter, min=1) for letter in "BTVKS"}
    dynamic = {
        name: {at: open_sizes[s] for at, s in enumerate(shape) if s in open_sizes}
        for name, (_, shape) in RANK_INPUTS.items()
    }
    _export(graph, arguments, dynamic, RANK_INPUTS, RANK_OUTPUTS, path)


def export_tower(tower: nn.Module, path: Path) -> None:
    """Write the item tower: [N] id rows, [N, A] attribute rows -> two [N, d] tables."""
    arguments = (torch.tensor([0, -1, 0]), torch.tensor([[0, -1], [-1, -1], [0, 0]]))
    N, A = Dim("N", min=1), Dim("A", min=1)
    dynamic = {"id_rows": {0: N}, "attribute_rows": {0: N, 1: A}}
    _export(tower, arguments, dynamic, TOWER_INPUTS, TOWER_OUTPUTS, path)


def graph_inputs() -> list[GraphInput]:
    """The inputs of the ranking graph, for the manifest."""
    return [GraphInput(name, kind, list(shape)) for name, (kind, shape) in RANK_INPUTS.items()]


def _example(name: str, sizes: dict[str, int]) -> Tensor:
    kind, shape = RANK_INPUTS[name]
    dimensions = [sizes[s] if isinstance(s, str) else s for s in shape]
    if kind == "float32":
        return torch.rand(dimensions)
    return torch.ones(dimensions, dtype=torch.int64)


def _export(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    dynamic: dict[str, Any],
    inputs: Any,
    outputs: tuple[str, ...],
    path: Path,
) -> None:
    # It warns of operators of torchvision, which nothing here uses.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            arguments,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # Where in the code each node comes from: paths of the machine that exported it.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(path))
