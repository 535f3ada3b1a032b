"""Check a release in a process of its own: `python -m stream.check_release FOLDER BUDGET_MS`.

A flipped bit can load and silently compute wrong numbers, and a small file can demand gigabytes:
neither may happen inside a worker. Exit code 0: the release computes what it was exported with.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from export.errors import DriftlineError
from export.parity import golden_difference, read_golden, run_graph
from export.release import GRAPH, TOWER, open_release

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
    golden = read_golden(path)
    rank = open_session(str(release.path / GRAPH), "cpu", 1)
    tower = open_session(str(release.path / TOWER), "cpu", 1)
    difference = golden_difference(golden, rank, tower)
    if not difference <= TOLERANCE:
        raise DriftlineError(
            f"{path}: wanted the golden outputs within {TOLERANCE}, got a difference of "
            f"{difference:.1e}; the release is damaged or was exported for another runtime: "
            "export it again"
        )
    took_ms = min(_timed_ms(lambda: run_graph(rank, golden.rank_inputs)) for _ in range(3))
    if took_ms > budget_ms:
        raise DriftlineError(
            f"{path}: wanted the golden batch within {budget_ms:.0f} ms, it took {took_ms:.0f}; "
            "make the model smaller, or raise `release_budget_ms`"
        )


def _timed_ms(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return (time.perf_counter() - begun) * 1000


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
    except Exception as error:  # whatever ONNX Runtime makes of a damaged graph: it is refused
        print(f"{sys.argv[1]}: cannot be loaded or run: {error}; export it again")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
