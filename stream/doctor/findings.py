"""Keep what one look at an installation found, each finding a line with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

Status = Literal["ok", "warn", "fail", "skip"]


class Finding(Struct, frozen=True):
    """The outcome of one check. `skip`: it could not be made, and another finding says why."""

    name: str
    status: Status
    said: str
    advice: str = ""

    def as_line(self) -> str:
        """For people: one line, what to do at its end."""
        said = " ".join(f"{self.said}; {self.advice}".split()) if self.advice else self.said
        return f"{self.status:<5} {self.name:<12} {said}"


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """For machines."""
    return {"ok": not has_failed(findings), "checks": list(findings)}


def has_failed(findings: Sequence[Finding]) -> bool:
    """Whether something must be put right before a worker can serve as it should."""
    return any(finding.status == "fail" for finding in findings)
