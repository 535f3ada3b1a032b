"""Hand over to the check of lists in `models`: it needs torch, which a worker has not."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from export.errors import DriftlineError
from export.event_types import DEFAULT_EVENT_TYPES
from stream.settings import Settings


class MissingPackageError(DriftlineError):
    """The trainer's packages are not installed."""


class Comparison(Protocol):
    """What the check found."""

    @property
    def holds(self) -> bool:
        """Whether every list is as it should be."""
        ...

    def as_json(self) -> dict[str, object]:
        """For machines."""
        ...

    def as_table(self) -> str:
        """For people."""
        ...


def compare(settings: Settings, samples: int, seed: int) -> Comparison:
    """Run the check with a worker's settings.

    Raises MissingPackageError without the trainer's packages, and what the check raises.
    """
    try:
        log: Any = importlib.import_module("models.parity_log")
        check: Any = importlib.import_module("models.verify_parity")
    except ImportError as error:
        raise MissingPackageError(
            f"`driftline verify parity` needs the package {error.name}: install "
            "driftline[train,cpu]"
        ) from error
    plan = log.ParityPlan(
        bootstrap=settings.bootstrap,
        prefix=settings.prefix,
        registry=settings.registry,
        samples=samples,
        seed=seed,
        roles=DEFAULT_EVENT_TYPES | settings.event_types,
        max_history=settings.max_history,
        dedupe_ring=settings.dedupe_ring,
        max_lateness_ms=settings.max_lateness_ms,
        popularity_half_lives_ms=settings.popularity_half_lives_ms,
        chain_half_life_ms=settings.chain_half_life_ms,
        neighbours=settings.neighbours,
        max_pairs=settings.max_pairs,
    )
    report: Comparison = check.verify_parity(plan)
    return report
