"""One training in a process of its own: `python -m models.job FOLDER`.

The trainer goes on reading meanwhile, and the memory of a training is given back when it ends. The
folder holds the corpus and the order; the result is written beside them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from export.errors import DriftlineError
from export.manifest import Gate
from models.log_source import Offsets

_ORDER, _RESULT = "order.json", "result.json"


class Order(Struct, frozen=True):
    """What is to be trained. `parent` is the release that a warm training goes on from."""

    registry: str
    name: str
    seed: int
    threads: int
    nice: int
    offsets: Offsets
    now_ms: int
    parent: int | None = None
    new_from: int = 0  # number of the first event that the parent has not learned from

    def write(self, folder: Path) -> None:
        """Put the order beside the corpus."""
        (folder / _ORDER).write_bytes(msgspec.json.encode(self))


class Result(Struct, frozen=True):
    """The release that came of it; `refusals` say why it may not go live."""

    version: int
    sha256: str
    path: str
    refusals: list[str]
    gates: dict[str, Gate]
    metrics: dict[str, Any]


def read_result(folder: Path) -> Result | None:
    """What a job left behind; None if it did not get there."""
    try:
        return msgspec.json.decode((folder / _RESULT).read_bytes(), type=Result)
    except (OSError, msgspec.MsgspecError):
        return None


def run(folder: Path) -> Result:
    """Train, export, prove and write the release; the result stands in the folder as well."""
    order = msgspec.json.decode((folder / _ORDER).read_bytes(), type=Order)
    os.nice(order.nice)
    import torch

    from export.registry import Registry
    from models.corpus import read_corpus
    from models.pipeline import PipelineSettings, train_cold, train_warm
    from models.publish import Origin, load_former, publish

    torch.set_num_threads(order.threads)
    corpus = read_corpus(folder)
    settings = PipelineSettings(seed=order.seed)
    registry = Registry(Path(order.registry))
    if order.parent is None:
        trained = train_cold(corpus, settings)
    else:
        former = load_former(registry.open(order.name, order.parent))
        trained = train_warm(corpus, former, order.new_from, settings)
    origin = Origin(order.offsets, order.parent, order.now_ms)
    published = publish(trained, corpus, settings, origin, registry, order.name)
    release = published.release
    result = Result(
        release.version,
        release.sha256,
        str(release.path.resolve()),
        published.refusals,
        published.gates,
        published.metrics,
    )
    temporary = folder / (_RESULT + ".part")
    temporary.write_bytes(msgspec.json.encode(result))
    temporary.rename(folder / _RESULT)
    return result


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]))
    except DriftlineError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
