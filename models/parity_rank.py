"""Score all items for a user at a moment: by live statistics alone, or by a release with torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from export.release import Release, open_release
from models.network import DriftlineModel, LiveInputs
from models.parity_log import EventLog, HistoryEntry, ParityError, ParityPlan, SampledList
from models.parity_statistics import Chain, PlainStatistics

_LINKS = 5
_MAX_TOKENS = 50
_AGE_BUCKETS = 33
_OTHER_TYPE = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known of a user and of all V items when a list is made."""

    history: list[HistoryEntry]  # oldest first
    history_items: list[int]  # their numbers
    events_total: int
    request_ms: int
    popularity: NDArray[np.float64]  # [2, V]
    chain: Chain
    known: NDArray[np.bool_]  # [V] may be listed to somebody
    seen: NDArray[np.int64]  # [S] may not be listed to this user


class PlainRanker:
    """Scores as [V] arrays; an item that may not be listed has a score of 0."""

    def __init__(self, plan: ParityPlan, log: EventLog, statistics: PlainStatistics) -> None:
        self._plan = plan
        self._log = log
        self._statistics = statistics
        self._hidden: dict[int, list[int]] = {}
        self._release: LoadedRelease | None = None

    def scores(self, sample: SampledList) -> NDArray[np.float64]:
        """[V] the scores that the sampled list should have been cut from."""
        _, seen, share = policy_of(sample)
        moment = self._moment(sample, filters_seen=seen == "filter")
        name, version, _ = sample.release
        if version == 0:
            return statistics_scores(moment, share)
        wanted = (name, version, sample.catalogue)
        if self._release is None or self._release.key != wanted:
            self._release = LoadedRelease(self._plan, self._log, self._statistics.items, sample)
        return self._release.scores(moment)

    def _moment(self, sample: SampledList, filters_seen: bool) -> Moment:
        statistics = self._statistics
        entries = self._log.history(sample.user, sample.applied_offset)
        history = entries[-self._plan.max_history :]
        visible = statistics.visible(sample.positions)
        popularity = statistics.popularity(visible)
        known = popularity[1] > 0
        known[self._hidden_at(sample.catalogue)] = False
        newest_first = [entry.item for entry in reversed(history[-_LINKS:])]
        before = self._log.taken_before(sample.user, sample.applied_offset)
        seen = [*(entry.item for entry in entries), *before] if filters_seen else []
        taken = {statistics.number[item] for item in seen}
        unlisted = taken | self._unwanted(sample)
        return Moment(
            history,
            [statistics.number[entry.item] for entry in history],
            len(entries),
            sample.request_ms,
            popularity,
            statistics.chain(newest_first, visible),
            known,
            np.array(sorted(unlisted), dtype=np.int64),
        )

    def _unwanted(self, sample: SampledList) -> set[int]:
        """Items that the user did not want listed at the time of the list."""
        wishes = self._log.wishes_at(sample.user, sample.applied_offset)
        wanted_away = {
            (wish.subject, wish.target) for wish in wishes if wish.until_ms > sample.request_ms
        }
        if not wanted_away:
            return set()
        newest = {v.item: v for v in self._log.catalogue if v.offset < sample.catalogue}
        return {
            number
            for item, number in self._statistics.number.items()
            if ("item", item) in wanted_away
            or (item in newest and newest[item].subjects & wanted_away)
        }

    def _hidden_at(self, position: int) -> list[int]:
        """Items that the catalogue says may not be listed."""
        if position not in self._hidden:
            newest = {v.item: v for v in self._log.catalogue if v.offset < position}
            number = self._statistics.number
            self._hidden[position] = [
                number[v.item] for v in newest.values() if not v.is_listable and v.item in number
            ]
        return self._hidden[position]


def policy_of(sample: SampledList) -> tuple[int, str, float]:
    """Length of the list, what is done with seen items, share of popularity without a model."""
    length, seen, share = sample.policy.split("/")
    return int(length.removeprefix("top-")), seen.removesuffix("-seen"), float(share)


def statistics_scores(moment: Moment, share: float) -> NDArray[np.float64]:
    """[V] share x popularity + (1 - share) x chain."""
    scores: NDArray[np.float64] = share * moment.popularity[0]
    np.add.at(scores, moment.chain.items, (1 - share) * moment.chain.shares[0])
    scores[~moment.known] = 0.0
    scores[moment.seen] = 0.0
    return scores


class LoadedRelease:
    """A release's torch model with the vectors of all items, for one state of the catalogue."""

    def __init__(
        self, plan: ParityPlan, log: EventLog, items: list[str], sample: SampledList
    ) -> None:
        name, version, sha256 = sample.release
        self.key = (name, version, sample.catalogue)
        release = open_release(Path(plan.registry) / name / str(version))
        if release.sha256 != sha256:
            raise ParityError(f"{release.path} is not the release that ranked {sample.rec_id}")
        self._types = release.event_types
        disable_progress_bar()  # there is one for the lists
        self._model: Any = DriftlineModel.from_pretrained(release.path).eval()
        attributes = {v.item: v.attributes for v in log.catalogue if v.offset < sample.catalogue}
        with torch.no_grad():
            self._vectors = self._model.tower(*_tower_rows(release, items, attributes))

    @torch.no_grad()
    def scores(self, moment: Moment) -> NDArray[np.float64]:
        """[V] the final scores; 0 where an item may not be listed."""
        _, counted, learned = self._model.score_parts(self._inputs(moment))  # [1, V] each
        scores: NDArray[np.float64] = (counted + learned)[0].double().numpy()
        return scores

    def _inputs(self, moment: Moment) -> LiveInputs:
        tokens = moment.history[-_MAX_TOKENS:]
        chain = moment.chain if len(moment.chain.items) else _NO_CHAIN
        rows = moment.history_items[-_MAX_TOKENS:]
        return LiveInputs(
            torch.tensor([rows or [0]]),
            torch.tensor([[self._types.get(t.type, _OTHER_TYPE) for t in tokens] or [0]]),
            torch.tensor([[age_bucket(moment.request_ms - t.time_ms) for t in tokens] or [0]]),
            torch.tensor([len(tokens)]),
            torch.tensor([gate_values(moment)]),
            torch.from_numpy(moment.popularity.astype(np.float32)),
            torch.from_numpy(chain.items[None]),
            torch.from_numpy(chain.shares[:, None].astype(np.float32)),
            torch.from_numpy(moment.known.astype(np.float32)),
            torch.from_numpy(moment.seen[None]),
            *self._vectors,
        )


_NO_CHAIN = Chain(np.zeros(1, dtype=np.int64), np.zeros((2, 1)))


def age_bucket(age_ms: int) -> int:
    """1 + the rounded log2 of the age in whole seconds plus one."""
    seconds = max(age_ms, 0) // 1000
    return min(1 + math.floor(math.log2(seconds + 1) + 0.5), _AGE_BUCKETS - 1)


def gate_values(moment: Moment) -> list[float]:
    """What the gate reads of a user: time gap, events so far, strength of the chain."""
    newest_ms = moment.history[-1].time_ms if moment.history else moment.request_ms
    gap = math.log1p(max(moment.request_ms - newest_ms, 0) / 1000) / 10
    count = moment.events_total
    strongest = float(moment.chain.shares[0].max(initial=0.0))
    return [
        gap,
        math.log1p(count) / 4,
        float(strongest > 0),
        float(count == 1),
        min(count, 5) / 5,
        gap * gap,
        strongest,
    ]


def _tower_rows(
    release: Release, items: list[str], attributes: Mapping[str, tuple[str, ...]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[V] rows of the items in the release, and [V, A] rows of their attributes; -1 for none."""
    row_of = {item: row for row, item in enumerate(release.items)}
    known = [
        [
            release.attributes[name]
            for name in attributes.get(item, ())
            if name in release.attributes
        ]
        for item in items
    ]
    width = max(1, *map(len, known), 1)
    padded = [rows + [-1] * (width - len(rows)) for rows in known]
    return torch.tensor([row_of.get(item, -1) for item in items]), torch.tensor(padded)
