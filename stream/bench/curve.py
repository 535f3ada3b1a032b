"""Draw the trade between batch wait and latency as an SVG picture, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stream.bench.latency import LatencyReport, LatencyRun

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 170, 48, 56
_COLOURS = ("#2563eb", "#0f9d58", "#d97706", "#9333ea")
_INK, _FAINT = "#374151", "#e5e7eb"


def wait_curve(report: LatencyReport) -> str:
    """p50 (full line) and p99 (dashed) by batch wait, a colour for each load; latency in powers.

    Runs that count for nothing are left out.
    """
    runs = [run for run in report.runs if not run.wrong]
    waits = sorted({run.wait_ms for run in runs})
    loads = sorted({run.load_percent for run in runs})
    top_ms = _next_nice(max((run.p99_ms for run in runs), default=1.0))
    low_ms = _nice_below(min((run.p50_ms for run in runs), default=1.0))
    pieces = [_frame(report, waits, low_ms, top_ms)]
    for number, load in enumerate(loads):
        of_load = sorted((r for r in runs if r.load_percent == load), key=lambda run: run.wait_ms)
        pieces.append(_lines(of_load, waits, (low_ms, top_ms), number))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n'
        + "\n".join(pieces)
        + "\n</svg>\n"
    )


def _frame(report: LatencyReport, waits: Sequence[float], low_ms: float, top_ms: float) -> str:
    title = (
        f"From event to list, {report.items:,} items: batch wait against latency, by share of load"
    )
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    pieces = [f'<text x="{_LEFT}" y="24" font-size="14" font-weight="600">{title}</text>']
    for ms in _ticks(low_ms, top_ms):
        y = _y(ms, low_ms, top_ms)
        pieces.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{_FAINT}"/>')
        pieces.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{ms:g}</text>')
    for wait in waits:
        x = _x(wait, waits)
        pieces.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{wait:g}</text>')
    middle = (_LEFT + right) / 2
    pieces.append(
        f'<text x="{middle:.1f}" y="{_HEIGHT - 14}" text-anchor="middle">'
        "batch_wait_ms: how long a batch waits to become fuller</text>"
    )
    pieces.append(f'<text x="{_LEFT - 8}" y="{_TOP - 8}" text-anchor="end">ms</text>')
    return "\n".join(pieces)


def _lines(
    runs: Sequence[LatencyRun], waits: Sequence[float], span: tuple[float, float], number: int
) -> str:
    colour = _COLOURS[number % len(_COLOURS)]
    pieces = []
    for percentile, dash in (("p50", ""), ("p99", ' stroke-dasharray="5 4"')):
        values = [run.p50_ms if percentile == "p50" else run.p99_ms for run in runs]
        points = [
            (_x(run.wait_ms, waits), _y(value, *span))
            for run, value in zip(runs, values, strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        pieces.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        pieces += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        x, y = _WIDTH - _RIGHT + 16, _TOP + 12 + 44 * number + (20 if percentile == "p99" else 0)
        pieces.append(
            f'<path d="M{x} {y - 4}h26" stroke="{colour}" stroke-width="2"{dash}/>'
            f'<text x="{x + 34}" y="{y}">{percentile} at {runs[0].load_percent:.0f} %</text>'
        )
    return "\n".join(pieces)


def _x(wait: float, waits: Sequence[float]) -> float:
    """Waits stand at equal distances: they are a choice, and 0 has no place on a log scale."""
    inner = _WIDTH - _LEFT - _RIGHT - 40
    return _LEFT + 20 + inner * waits.index(wait) / max(len(waits) - 1, 1)


def _y(ms: float, low_ms: float, top_ms: float) -> float:
    share = math.log(ms / low_ms) / math.log(top_ms / low_ms)
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _ticks(low_ms: float, top_ms: float) -> list[float]:
    return [ms for ms in _nice_numbers() if low_ms <= ms <= top_ms]


def _next_nice(ms: float) -> float:
    return next(nice for nice in _nice_numbers() if nice >= ms)


def _nice_below(ms: float) -> float:
    return [nice for nice in _nice_numbers() if nice < ms][-1]


def _nice_numbers() -> list[float]:
    return [digit * 10.0**power for power in range(-3, 8) for digit in (1, 2, 5)]
