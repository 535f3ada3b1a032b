"""Decide whether a candidate may go live, from what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from export.manifest import Gate
from export.parity import TOLERANCE

#: Mean difference to the baseline and the 95 % interval's ends.
Difference = tuple[float, float, float]


def release_gates(
    parity: float, is_finite: bool, differences: Mapping[str, Difference]
) -> dict[str, Gate]:
    """The gates of a release.

    parity: the largest difference between torch and ONNX Runtime. differences: of each figure to
    that of chain + popularity, on events that the measured weights had not seen; a release holds
    if the upper end of the interval is not below 0, that is, if it is not proven to be worse.
    Figures that could not be measured (not a number) hold.
    """
    gates = {
        "parity": Gate(_number(parity), TOLERANCE, parity <= TOLERANCE),
        "finite": Gate(float(is_finite), 1.0, is_finite),
    }
    for name, (mean, _, high) in differences.items():
        measured = not math.isnan(mean)
        gates[f"{name} minus chain + popularity"] = Gate(
            mean if measured else 0.0, mean - high if measured else 0.0, not measured or high >= 0
        )
    return gates


def failures(gates: Mapping[str, Gate]) -> list[str]:
    """What keeps a release from going live, one sentence each; empty if all gates hold."""
    return [
        f"{name} is {gate.value:.6g}, bound {gate.bound:.6g}"
        for name, gate in gates.items()
        if not gate.holds
    ]


def _number(value: float) -> float:
    """JSON has no infinity."""
    return value if math.isfinite(value) else 1e30
