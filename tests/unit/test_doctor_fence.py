"""The doctor says whether a Kafka can fence the changelog, and what to set where it cannot."""

from __future__ import annotations

import pytest

from stream.doctor.fence import COPIES, EPOCHS, IDS, check_fence

HOUR_MS = 3_600_000
KAFKAS_DEFAULTS = {EPOCHS: 24 * HOUR_MS, IDS: 7 * 24 * HOUR_MS, COPIES: 3}


def test_kafkas_defaults_are_in_order_on_three_nodes():
    found = check_fence(KAFKAS_DEFAULTS, nodes=3, has_coordinator=False)

    assert (found.status, found.advice) == ("ok", "")
    assert "24 h" in found.said and "168 h" in found.said


def test_a_single_node_with_them_has_no_coordinator_and_no_worker_can_start():
    found = check_fence(KAFKAS_DEFAULTS, nodes=1, has_coordinator=False)

    assert found.status == "fail"
    assert COPIES in found.advice
    assert check_fence(KAFKAS_DEFAULTS, nodes=1, has_coordinator=True).status == "ok"


@pytest.mark.parametrize("name", [EPOCHS, IDS])
def test_a_broker_that_forgets_before_a_late_renewal_is_a_warning(name: str):
    found = check_fence(KAFKAS_DEFAULTS | {name: 11 * HOUR_MS}, nodes=3, has_coordinator=True)

    assert (found.status, name in found.said) == ("warn", True)
    assert str(12 * HOUR_MS) in found.advice


def test_a_broker_that_tells_nothing_is_a_warning():
    assert check_fence({}, nodes=1, has_coordinator=False).status == "warn"
