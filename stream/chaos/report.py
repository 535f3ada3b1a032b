"""What a run of faults found: a table for people, one object for machines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from stream.guards import GuardName


@dataclass(slots=True)
class Injected:
    """The faults of one kind. `missed` ones came when no batch was under way, and do not count."""

    name: str
    about: str
    wanted: int
    struck: int = 0
    missed: int = 0
    skipped: str = ""  # why there are none
    longest_s: float = 0.0  # that a partition's events waited and none was committed
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Verdict:
    """What the checker found in the end. All counts but the first five must be 0."""

    events: int = 0  # sent and acknowledged
    records: int = 0  # in the log, all that were sent twice or under a wrong key included
    users: int = 0
    lists: int = 0
    rows_on_disk: int = 0  # of workers, that could be compared with the changelog
    missing_in_log: int = 0  # events that the brokers have acknowledged and lost
    lost: int = 0
    applied_twice: int = 0
    wrong: int = 0
    users_not_exact: int = 0
    lists_missing: int = 0
    stale_writes: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything is as the log says."""
        return not (
            self.missing_in_log
            or self.lost
            or self.applied_twice
            or self.wrong
            or self.users_not_exact
            or self.lists_missing
            or self.stale_writes
            or (self.users and not self.rows_on_disk)  # then no disk was looked at
        )


@dataclass(frozen=True, slots=True)
class Control:
    """A run with one guard out: the checker must find something."""

    guard: GuardName
    fault: str
    crashes: int
    events: int
    lost: int
    applied_twice: int
    wrong: int

    @property
    def is_found_out(self) -> bool:
        """Whether the checker found the harm."""
        return bool(self.lost or self.applied_twice or self.wrong)


@dataclass(slots=True)
class ChaosReport:
    """A whole run."""

    seed: int
    nodes: int
    workers: int
    rate: float
    faults: list[Injected] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    controls: list[Control] = field(default_factory=list)
    unexpected_ends: Counter[str] = field(default_factory=Counter)  # of workers, by exit code
    stuck: str = ""  # why the run was broken off
    seconds: float = 0.0

    @property
    def longest_s(self) -> float:
        """The longest time for which a partition's events waited and none was committed."""
        return max((fault.longest_s for fault in self.faults), default=0.0)

    @property
    def too_seldom(self) -> list[str]:
        """The kinds that struck less often than wanted, with how often."""
        return [
            f"{fault.name} {fault.struck} of {fault.wanted}"
            for fault in self.faults
            if fault.struck < fault.wanted and not fault.skipped
        ]

    @property
    def holds(self) -> bool:
        """Whether all wanted faults struck, nothing is wrong, and each control was found out."""
        return (
            not self.stuck
            and self.verdict.holds
            and not self.too_seldom
            and all(control.is_found_out for control in self.controls)
        )

    def as_json(self) -> dict[str, object]:
        """The report for machines."""
        return {
            "holds": self.holds,
            "longest_s": self.longest_s,
            **msgspec.to_builtins(self),  # asdict makes pairs the keys of a Counter
        }

    def as_table(self) -> str:
        """The report for people."""
        lines = [f"{'fault':<16}{'struck':>7}{'missed':>7}{'longest s':>10}  what"]
        for fault in self.faults:
            lines.append(
                f"{fault.name:<16}{fault.struck:>7}{fault.missed:>7}{fault.longest_s:>10.1f}  "
                + (f"skipped: {fault.skipped}" if fault.skipped else fault.about)
            )
            lines += [f"{'':<42}{count}x {note}" for note, count in fault.notes.items()]
        lines += ["", *self._verdict_lines()]
        for control in self.controls:
            found = "found out" if control.is_found_out else "NOT FOUND OUT"
            lines.append(
                f"control without {control.guard:<12} {control.crashes} x {control.fault}, "
                f"{control.events:,} events: lost {control.lost}, twice {control.applied_twice}, "
                f"wrong {control.wrong}: {found}"
            )
        if self.stuck:
            lines.append(f"STUCK: {self.stuck}")
        if self.verdict.users and not self.verdict.rows_on_disk:
            lines.append("no disk was left whose rows could be compared")
        if self.too_seldom:
            lines.append(f"struck too seldom: {', '.join(self.too_seldom)}")
        lines += [f"  {finding}" for finding in self.verdict.findings]
        lines.append("survived" if self.holds else "NOT survived")
        return "\n".join(lines)

    def _verdict_lines(self) -> list[str]:
        verdict, struck = self.verdict, sum(fault.struck for fault in self.faults)
        ends = ", ".join(f"{count} x {code}" for code, count in self.unexpected_ends.items())
        exact = verdict.users - verdict.users_not_exact
        rows = {
            "faults that struck": f"{struck}",
            "events in": f"{verdict.events:,} ({verdict.records:,} records in the log)",
            "lost": f"{verdict.lost + verdict.missing_in_log}",
            "applied twice": f"{verdict.applied_twice}",
            "wrong otherwise": f"{verdict.wrong}",
            "users exact": f"{exact:,} of {verdict.users:,}",
            "lists missing": f"{verdict.lists_missing} of {verdict.lists:,}",
            "stale writes": f"{verdict.stale_writes}",
            "rows on disk": f"{verdict.rows_on_disk:,} compared",
            "longest unavailability": f"{self.longest_s:.1f} s",
            "workers ended by themselves": ends or "none",
            "seed, nodes, workers": f"{self.seed}, {self.nodes}, {self.workers}",
            "time": f"{self.seconds:.0f} s at {self.rate:.0f} events/s",
        }
        return [f"{name:<28}{value}" for name, value in rows.items()]
