"""Check a release in a process of its own: `python -m stream.check_release FOLDER BUDGET_MS`.

A flipped bit can load and silently compute wrong numbers, and a small file can demand gigabytes:
neither may happen inside a worker. Exit code 0: the release computes what it was exported with.
"""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.errors import DriftlineError
from export.release import GOLDEN, GRAPH, TOWER, open_release

#: Address space for the check: ONNX Runtime alone maps about 1 GiB.
MEMORY_BYTES = 6 * 2**30
#: Largest allowed difference of a golden output.
TOLERANCE = 1e-4


def check(path: Path, budget_ms: float) -> None:
    """Run the golden inputs through both graphs.

    Raises DriftlineError if an output differs, or if the graph takes longer than the budget.
    """
    from stream.ranker import open_session

    release = open_release(path)
    with np.load(path / GOLDEN, allow_pickle=False) as golden:
        for graph, prefix in ((GRAPH, "graph"), (TOWER, "tower")):
            session = open_session(str(release.path / graph), "cpu", 1)
            inputs = {i.name: golden[f"{prefix}.in.{i.name}"] for i in session.get_inputs()}
            names = [o.name for o in session.get_outputs()]
            for name, got in zip(names, session.run(names, inputs), strict=True):
                _compare(path / graph, name, golden[f"{prefix}.out.{name}"], got)
            run = functools.partial(session.run, names, inputs)
            took_ms = min(_timed_ms(run) for _ in range(3))
            if took_ms > budget_ms:
                raise DriftlineError(
                    f"{path / graph}: wanted the golden batch within {budget_ms:.0f} ms, it took "
                    f"{took_ms:.0f}; make the model smaller, or raise `release_budget_ms`"
                )


def _timed_ms(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return (time.perf_counter() - begun) * 1000


def _compare(path: Path, name: str, wanted: np.ndarray, got: np.ndarray) -> None:
    if not np.isfinite(got).all():
        raise DriftlineError(f"{path}: output {name} is not finite; train again")
    if wanted.shape != got.shape or not np.allclose(wanted, got, rtol=1e-3, atol=TOLERANCE):
        raise DriftlineError(
            f"{path}: output {name} differs from the golden one by more than {TOLERANCE}; the "
            "release is damaged or was exported for another runtime: export it again"
        )


def main() -> int:
    """Check the folder that the command line names, within the budget it names."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        check(Path(sys.argv[1]), float(sys.argv[2]))
    except DriftlineError as error:
        print(error)
        return 1
    except MemoryError:
        print(f"{sys.argv[1]}: needs more than {MEMORY_BYTES} bytes of memory")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
