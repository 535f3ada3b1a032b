"""The runbook names every metric of a worker, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from stream import metrics

RUNBOOK = Path(__file__).parents[2] / "deploy" / "RUNBOOK.md"


def test_the_runbook_names_every_metric_and_no_other() -> None:
    there = {
        each._name + ("_total" if isinstance(each, Counter) else "")
        for each in vars(metrics).values()
        if isinstance(each, MetricWrapperBase)
    }

    named = set(re.findall(r"`(driftline_\w+)", RUNBOOK.read_text()))

    assert named == there
