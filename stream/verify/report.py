"""Keep what a check of the engine found: how much was looked at, and what is not as it must be."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Findings of one check that are told in words; all of them are counted.
MAX_TOLD = 5


@dataclass(slots=True)
class Check:
    """One comparison of what is there with what the log says.

    lost: should be there and is not. twice: is there more often than it should. wrong: is there,
    and is another one. `notes` never make a check fail.
    """

    name: str
    unit: str
    checked: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    told: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything was as it must be."""
        return not (self.lost or self.twice or self.wrong)

    def tell(self, finding: str) -> None:
        """Describe a finding that was counted; the first ones are kept."""
        if len(self.told) < MAX_TOLD:
            self.told.append(finding)

    def lose(self, finding: str, count: int = 1) -> None:
        """Count something that is not there."""
        self.lost += count
        self.tell(f"lost: {finding}")

    def repeat(self, finding: str, count: int = 1) -> None:
        """Count something that is there too often."""
        self.twice += count
        self.tell(f"twice: {finding}")

    def miss(self, finding: str, count: int = 1) -> None:
        """Count something that differs."""
        self.wrong += count
        self.tell(f"wrong: {finding}")


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one run."""

    checks: list[Check]

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """The report for machines."""
        return {
            "holds": self.holds,
            "checks": {
                check.name: {
                    "unit": check.unit,
                    "checked": check.checked,
                    "lost": check.lost,
                    "twice": check.twice,
                    "wrong": check.wrong,
                    "findings": check.told,
                    "notes": check.notes,
                }
                for check in self.checks
            },
        }

    def as_table(self) -> str:
        """The report for people."""
        lines = [f"{'':<24}{'checked':>20}{'lost':>9}{'twice':>9}{'wrong':>9}"]
        for check in self.checks:
            checked = f"{check.checked:,} {check.unit}"
            lines.append(
                f"{check.name:<24}{checked:>20}{check.lost:>9}{check.twice:>9}{check.wrong:>9}"
            )
        for check in self.checks:
            lines += [f"  {check.name}: {line}" for line in (*check.notes, *check.told)]
        lines.append("everything is as the log says" if self.holds else "NOT as the log says")
        return "\n".join(lines)
