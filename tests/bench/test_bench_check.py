"""The bounds: what is missed, or was measured on a wrong state, is not met."""

from __future__ import annotations

import pytest

from stream.bench.check import RECOVERY, START_S, Bound, CheckReport, Finding


@pytest.mark.parametrize(
    ("bound", "value", "is_met"),
    [
        (Bound("ratio", at_least=0.9), 0.9, True),
        (Bound("ratio", at_least=0.9), 0.89, False),
        (Bound("time", at_most=3), 3.0, True),
        (Bound("time", at_most=3), 3.1, False),
        (Bound("time", at_most=3), float("nan"), False),
    ],
)
def test_a_bound_is_met_up_to_its_edge(bound: Bound, value: float, is_met: bool) -> None:
    assert bound.is_met(value) == is_met


def test_a_figure_of_a_wrong_state_counts_for_nothing() -> None:
    good = Finding(RECOVERY.figure, 2e5, RECOVERY.as_text(), is_met=True, wrong=[])
    void = Finding(START_S.figure, 1.0, START_S.as_text(), is_met=True, wrong=["a row is missing"])

    assert CheckReport(True, 0.0, 0.0, [good]).holds
    report = CheckReport(True, 0.0, 0.0, [good, void])
    assert not report.holds
    assert "MISSED" in report.as_table() and "WRONG: a row is missing" in report.as_table()
