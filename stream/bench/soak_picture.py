"""Draw a soak as an SVG picture: memory over time, latency of each minute, and what struck."""

from __future__ import annotations

import math

from stream.bench.soak import SoakReport

_WIDTH, _HEIGHT = 900, 420
_LEFT, _RIGHT = 64, 24
#: The two panels, from top to bottom in pixels.
_MEMORY, _LATENCY = (56, 190), (226, 340)
_INK, _FAINT, _BLUE, _GREEN, _RED = "#374151", "#e5e7eb", "#2563eb", "#0f9d58", "#dc2626"


def soak_picture(report: SoakReport) -> str:
    """Memory of the worker that is not struck above, p50 and p99 of each minute below."""
    span_s = max([*report.rss_at_s, *(m.begin_s for m in report.minutes), 1.0])
    pieces = [
        f'<text x="{_LEFT}" y="24" font-size="14" font-weight="600">Soak: '
        f"{report.events_per_s:,.0f} events/s, a fault a minute, {report.items:,} items</text>",
        *_memory(report, span_s),
        *_latency(report, span_s),
        *_faults(report, span_s),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n'
        + "\n".join(pieces)
        + "\n</svg>\n"
    )


def _memory(report: SoakReport, span_s: float) -> list[str]:
    top_mb = max(report.rss_mb) * 1.15
    points = [
        (_x(at_s, span_s), _y(mb / top_mb, _MEMORY))
        for at_s, mb in zip(report.rss_at_s, report.rss_mb, strict=True)
    ]
    label = f"resident memory, MB ({report.growth_mb_per_hour:+.0f} an hour)"
    ticks = [(mb, _y(mb / top_mb, _MEMORY)) for mb in (0.0, max(report.rss_mb))]
    return [
        *_frame(_MEMORY, label),
        *(_tick(f"{mb:.0f}", y) for mb, y in ticks),
        _line(points, _BLUE),
    ]


def _latency(report: SoakReport, span_s: float) -> list[str]:
    low, top = 1.0, max([minute.p99_ms for minute in report.minutes] + [10.0])
    powers = range(math.floor(math.log10(top)) + 1)

    def height(ms: float) -> float:
        return _y(math.log(max(ms, low) / low) / math.log(top * 1.2 / low), _LATENCY)

    pieces = _frame(_LATENCY, "event to list, ms: p50, p99")
    pieces += [_tick(f"{10**power:g}", height(10.0**power)) for power in powers]
    for colour, values in (
        (_GREEN, [minute.p50_ms for minute in report.minutes]),
        (_RED, [minute.p99_ms for minute in report.minutes]),
    ):
        points = [
            (_x(minute.begin_s, span_s), height(ms))
            for minute, ms in zip(report.minutes, values, strict=True)
        ]
        pieces.append(_line(points, colour))
    return pieces


def _faults(report: SoakReport, span_s: float) -> list[str]:
    pieces = []
    for minute in report.minutes:
        x, y = _x(minute.begin_s, span_s), _LATENCY[1] + 14
        pieces.append(f'<path d="M{x:.1f} {_MEMORY[0]}V{_LATENCY[1]}" stroke="{_FAINT}"/>')
        pieces.append(
            f'<text x="{x:.1f}" y="{y}" font-size="9" transform="rotate(60 {x:.1f} {y})">'
            f"{minute.fault}</text>"
        )
    return pieces


def _frame(panel: tuple[int, int], label: str) -> list[str]:
    top, bottom = panel
    return [
        f'<text x="{_LEFT}" y="{top - 8}">{label}</text>',
        f'<path d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}" stroke="{_INK}"/>',
    ]


def _tick(text: str, y: float) -> str:
    return (
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_FAINT}"/>'
    )


def _line(points: list[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _x(at_s: float, span_s: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at_s / span_s


def _y(share: float, panel: tuple[int, int]) -> float:
    top, bottom = panel
    return bottom - (bottom - top) * share
