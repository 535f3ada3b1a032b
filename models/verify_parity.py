"""Check that workers rank as the log and the releases say: no skew between training and serving.

1. Draw lists from `decisions`, and see that consumers got the same items.
2. Fold the log anew into histories and statistics, in plain Python with real-number decays.
3. Score all items for each list at its user's state and its statistics position: by the live
   statistics alone, or with the release's torch model, as the list's decision says.
4. Compare: the same items, and their scores.

Nothing of `stream` is used.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.parity_fold import read_log
from models.parity_log import ParityPlan, SampledList, read_samples, sent_items
from models.parity_rank import PlainRanker, policy_of
from models.parity_statistics import PlainStatistics

#: Scores may differ by so much.
MAX_DIFFERENCE = 1e-4
#: Items whose scores are equal but for so small a part may change places at the cut: the workers'
#: decays are whole numbers of 17 bits and more, those here are real.
TIE_SHARE = 2e-5
_MAX_TOLD = 5


@dataclass(slots=True)
class ParityReport:
    """How lists compare. `differing` counts lists with another item or another score."""

    lists: int = 0
    by_release: Counter[str] = field(default_factory=Counter)
    same_items: int = 0
    ties_at_the_cut: int = 0
    differing: int = 0
    on_recommendations: int = 0
    largest_difference: float = 0.0
    told: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every list is as it should be."""
        return self.lists > 0 and not self.differing

    def as_json(self) -> dict[str, object]:
        """The report for machines."""
        return {
            "holds": self.holds,
            "lists": self.lists,
            "by_release": dict(self.by_release),
            "same_items": self.same_items,
            "ties_at_the_cut": self.ties_at_the_cut,
            "differing": self.differing,
            "on_recommendations": self.on_recommendations,
            "largest_difference": self.largest_difference,
            "findings": self.told,
        }

    def as_table(self) -> str:
        """The report for people."""
        rows = [
            ("lists compared", f"{self.lists:,}"),
            *((f"  by {name}", f"{count:,}") for name, count in sorted(self.by_release.items())),
            ("same items", f"{self.same_items:,}"),
            ("other items of equal score at the cut", f"{self.ties_at_the_cut:,}"),
            ("differing", f"{self.differing:,}"),
            ("still on recommendations, with the same items", f"{self.on_recommendations:,}"),
            ("largest difference of a score", f"{self.largest_difference:.2e}"),
        ]
        lines = [f"{name:<48}{value:>12}" for name, value in rows]
        lines += [f"  {finding}" for finding in self.told]
        lines.append("lists are as the log says" if self.holds else "lists are NOT as the log says")
        return "\n".join(lines)


def verify_parity(plan: ParityPlan) -> ParityReport:
    """Compare `plan.samples` lists of an engine with what they should be.

    Raises ParityError where there is nothing to compare, ReleaseError where a release that ranked
    is not in the registry any more.
    """
    samples = read_samples(plan)  # 1
    sent = sent_items(plan, {sample.rec_id for sample in samples})
    log = read_log(plan)  # 2
    statistics = PlainStatistics(log.events, plan)
    ranker = PlainRanker(plan, log, statistics)
    report = ParityReport()
    samples.sort(key=lambda sample: (sample.release, sample.catalogue))
    for sample in tqdm(samples, desc="lists", disable=None, leave=False):
        scores = ranker.scores(sample)  # 3
        _compare(report, sample, scores, statistics)  # 4
        if sample.rec_id in sent:
            report.on_recommendations += 1
            if sent[sample.rec_id][: len(sample.items)] != sample.items:
                _differ(report, f"list {sample.rec_id} was sent with other items than decided")
    return report


def _compare(
    report: ParityReport,
    sample: SampledList,
    scores: NDArray[np.float64],
    statistics: PlainStatistics,
) -> None:
    report.lists += 1
    report.by_release[f"{sample.release[0]}/{sample.release[1]}"] += 1
    length, _, _ = policy_of(sample)
    length = min(length, 100)  # a decision holds no more
    order = np.lexsort((statistics.hashes, -scores))[:length]
    wanted = {statistics.items[n] for n in order.tolist() if scores[n] > 0}
    got = [float(scores[statistics.number[item]]) for item in sample.items]
    differences = [abs(a - b) for a, b in zip(got, sample.scores, strict=True)]
    report.largest_difference = max(report.largest_difference, max(differences, default=0.0))
    if max(differences, default=0.0) > MAX_DIFFERENCE:
        worst = int(np.argmax(differences))
        _differ(
            report,
            f"list {sample.rec_id}, item {sample.items[worst]}: wanted score {got[worst]:.6f}, "
            f"got {sample.scores[worst]:.6f}",
        )
        return
    others = wanted.symmetric_difference(sample.items)
    if not others:
        report.same_items += 1
        return
    cut = float(scores[order[-1]])
    is_tie = len(wanted) == len(sample.items) and all(
        abs(scores[statistics.number[item]] - cut) <= TIE_SHARE * cut for item in others
    )
    if is_tie:
        report.ties_at_the_cut += 1
    else:
        _differ(report, f"list {sample.rec_id} of {sample.user}: other items {sorted(others)[:6]}")


def _differ(report: ParityReport, finding: str) -> None:
    report.differing += 1
    if len(report.told) < _MAX_TOLD:
        report.told.append(finding)
