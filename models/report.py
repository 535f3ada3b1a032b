"""Print what was measured, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.evaluate import BASELINE


def report(metrics: Mapping[str, Any], title: str) -> str:
    """A table for returning users and one for everyone, and the differences to the baseline."""
    lines = [title]
    for group in ("returning", "everyone"):
        lines.append(f"\n{group:22s} {'n':>7s} {'HR@10':>7s} {'NDCG@10':>8s} {'HR@50':>7s}")
        for name, row in metrics[group].items():
            figures = [row["HR@10"], row["NDCG@10"], row["HR@50"]]
            shown = " ".join(f"{'-' if v is None else format(v, '.4f'):>8s}" for v in figures)
            lines.append(f"  {name:20s} {int(row['n'] or 0):7d}{shown}")
    lines.append("")
    for name, (mean, low, high) in metrics["minus chain + popularity"].items():
        if mean is not None:
            lines.append(
                f"driftline minus {BASELINE}, {name}, returning: {mean:+.4f} "
                f"(95 % interval {low:+.4f} to {high:+.4f}, bootstrap over users)"
            )
    return "\n".join(lines)
