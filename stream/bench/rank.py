"""Measure ranking: a release's graph alone, and the same users through the worker's own steps.

In process and without a broker. What the worker adds to the graph is laid out by step: columns of
the users (`requests`), the call with its copies to and from the device beyond the graph (`call`),
and reasons, lists, decisions and interests as bytes (`messages`). These steps one after the other,
on one core, are `worker`; `overlapped` is the same as the worker does it, with the graph in a
thread while the messages of the micro-batch before are made, on two cores.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from tqdm import tqdm

from export.items import ItemIndex
from export.registry import Registry
from export.release import GRAPH, Release, open_release
from export.runtime import ort
from export.statistics import CHAIN_DEPTH, DAY_MS, Deltas
from stream.bench.workload import by_rank, user_id
from stream.events import Item, encode
from stream.folded_batch import TouchedUser
from stream.history import HistoryEvent, RowLimits, UserRow, hash32, hash64
from stream.live import LiveParts
from stream.outbox import Outbox
from stream.ranker import TIE_MARGIN, ModelRanker, open_session
from stream.ranking import Ranking
from stream.requests import LiveTensors, RankRequests
from stream.settings import Settings

BATCH_SIZES = (1, 16, 64)
#: Calls of single users are timed for so many at most: their mean settles early.
_MAX_CALLS = 500
_ROUNDS = 5
_NOW_MS = 1_400_000_000_000
_STEPS = ("requests", "graph", "call", "messages")
#: Users whose lists are due in one batch, when ranking and messages overlap.
_DUE_USERS = 256
_CATEGORIES = 24


class RankRun(Struct, frozen=True):
    """Figures at one batch size; `shares` are each step's part of the worker's time."""

    batch: int
    graph_ms_per_call: float
    graph_users_per_s: float
    worker_ms_per_call: float
    worker_users_per_s: float
    ratio: float
    shares: dict[str, float]
    overlapped_users_per_s: float
    overlapped_ratio: float


class RankReport(Struct, frozen=True):
    """What ranking costs with one release."""

    release: str
    users: int
    items: int
    threads: int
    runs: list[RankRun]

    def as_table(self) -> str:
        """A line for each batch size."""
        lines = [
            f"release {self.release}, {self.items:,} items, {self.users:,} users, "
            f"{self.threads} thread; medians of {_ROUNDS} rounds in turn",
            f"{'batch':>6} {'graph ms':>9} {'users/s':>9} {'worker ms':>10} {'users/s':>9} "
            f"{'ratio':>6} {'overlapped':>10} {'ratio':>6}  share of the worker's time",
        ]
        for run in self.runs:
            shares = ", ".join(f"{step} {share:.0%}" for step, share in run.shares.items())
            lines.append(
                f"{run.batch:>6} {run.graph_ms_per_call:>9.2f} {run.graph_users_per_s:>9,.0f} "
                f"{run.worker_ms_per_call:>10.2f} {run.worker_users_per_s:>9,.0f} "
                f"{run.ratio:>6.2f} {run.overlapped_users_per_s:>10,.0f} "
                f"{run.overlapped_ratio:>6.2f}  {shares}"
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _World:
    """Users with histories, statistics of their events, and a release that ranks."""

    settings: Settings
    live: LiveParts
    ranker: ModelRanker
    tensors: LiveTensors
    users: list[TouchedUser]

    def batches(self, size: int) -> list[list[TouchedUser]]:
        """The users in whole batches, as many as are timed."""
        ends = range(size, len(self.users) + 1, size)
        return [self.users[end - size : end] for end in ends][:_MAX_CALLS] or [self.users]

    def ranking(self, size: int) -> Ranking:
        """What makes lists, so many users at a time, and sends every one."""
        settings = msgspec.structs.replace(self.settings, max_rank_batch=size)
        return Ranking(settings, self.live, lambda user, items: True)


def find_release(path: Path | None, settings: Settings) -> Release:
    """The release at a path, else the newest of the registry.

    Raises DriftlineError where there is none, or it cannot be used.
    """
    if path is not None:
        return open_release(path)
    return Registry(Path(settings.registry)).open(settings.release)


def bench_rank(release: Release, settings: Settings, users: int, items: int | None) -> RankReport:
    """Rank for generated users, in batches of several sizes. `items`: default, the release's."""
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        world = _world(release, settings, Path(folder), users, items or len(release.items))
    session = open_session(str(release.path / GRAPH), settings.device, settings.inference_threads)
    bar = tqdm(BATCH_SIZES, unit="size", disable=not sys.stderr.isatty())
    return RankReport(
        f"{release.name}/{release.version}",
        users,
        len(world.tensors.known),
        settings.inference_threads,
        [_measure(world, session, size) for size in bar],
    )


def _measure(world: _World, session: Any, size: int) -> RankRun:
    """Graph and worker in turn over the same batches; the medians of the rounds."""
    batches, ranking = world.batches(size), world.ranking(size)
    context = ranking.context(_NOW_MS, True)
    bindings = [
        _bound(session, world, ranking.columns(users, context).requests) for users in batches
    ]
    session.run_with_iobinding(bindings[0])
    _rank(ranking, batches[0], defaultdict(float))
    graph_s, overlapped_s = [], []
    steps: list[dict[str, float]] = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        for binding in bindings:
            session.run_with_iobinding(binding)
        graph_s.append(time.perf_counter() - begun)
        took: dict[str, float] = defaultdict(float)
        for users in batches:
            _rank(ranking, users, took)
        steps.append(took)
        overlapped_s.append(asyncio.run(_overlapped(ranking, batches, size)))
    calls, count = len(batches), sum(map(len, batches))
    graph, overlapped = median(graph_s), median(overlapped_s)
    spent = sorted(steps, key=lambda took: sum(took.values()))[len(steps) // 2]
    worker = sum(spent.values())
    in_rank = spent.pop("rank")
    spent["graph"] = min(graph, in_rank)
    spent["call"] = in_rank - spent["graph"]
    return RankRun(
        size,
        graph / calls * 1e3,
        count / graph,
        worker / calls * 1e3,
        count / worker,
        graph / worker,
        {name: spent[name] / worker for name in _STEPS},
        count / overlapped,
        graph / overlapped,
    )


def _rank(ranking: Ranking, users: list[TouchedUser], took: dict[str, float]) -> None:
    """All that the worker does to turn due users into bytes, one step after the other; adds up
    what each took."""
    _forget_interests(users)
    context = ranking.context(_NOW_MS, True)
    at = [time.perf_counter()]
    columns = ranking.columns(users, context)
    at.append(time.perf_counter())
    ranked = ranking.rank(columns, context)
    at.append(time.perf_counter())
    ranking.add_ranked(users, columns, ranked, context, Outbox())
    at.append(time.perf_counter())
    for name, begun, ended in zip(("requests", "rank", "messages"), at, at[1:], strict=False):
        took[name] += ended - begun


async def _overlapped(ranking: Ranking, batches: list[list[TouchedUser]], size: int) -> float:
    """Seconds for the same users as the worker ranks them, _DUE_USERS in a batch of events."""
    users = [user for batch in batches for user in batch]
    due = max(_DUE_USERS // size, 1) * size
    took = 0.0
    for start in range(0, len(users), due):
        _forget_interests(users[start : start + due])
        begun = time.perf_counter()
        await ranking.add_lists(users[start : start + due], _NOW_MS, Outbox())
        took += time.perf_counter() - begun
    return took


def _forget_interests(users: list[TouchedUser]) -> None:
    """So that interests are news in every round."""
    for user in users:
        user.row.interests_digest = 0


def _bound(session: Any, world: _World, requests: RankRequests) -> Any:
    """One call of the graph with all of its inputs in place."""
    size, device = len(world.tensors.known), world.settings.device
    item_input, item_output = world.ranker.table.slices(size)
    inputs = {
        "item_input": item_input,
        "item_output": item_output,
        "popularity": world.tensors.popularity,
        "known": world.tensors.known,
        **{name: getattr(requests, name) for name in RankRequests.__slots__},
    }
    binding = session.io_binding()
    for name, array in inputs.items():
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
        binding.bind_ortvalue_input(name, value)
    wanted = min(world.settings.list_length + TIE_MARGIN, size)
    binding.bind_cpu_input("k", np.array([wanted], dtype=np.int64))
    for name in ("rows", "scores", "parts"):
        binding.bind_output(name, "cpu")
    return binding


def _world(release: Release, settings: Settings, folder: Path, users: int, items: int) -> _World:
    """Users with 1 to 50 events of generated popularity, all of them in the statistics."""
    live = LiveParts(Settings(registry=str(folder), model=False))
    ids = [*release.items[:items], *(f"new-{n}" for n in range(items - len(release.items)))]
    _fill_catalogue(live, ids)
    kind = next(iter(release.event_types), "click")
    rng = np.random.default_rng(1)
    touched, deltas = [], _Columns()
    for number in range(users):
        row = UserRow(1)
        drawn = by_rank(rng, len(ids), 1.0, int(rng.integers(1, 51)))
        for item in drawn.tolist():
            offset = len(deltas.items)
            time_ms = _NOW_MS - int(rng.integers(0, 30 * DAY_MS))
            event = HistoryEvent(
                hash64(str(offset)), int(live.index.hashes[item]), time_ms, offset, hash32(kind)
            )
            deltas.add(item, row.fold(event, RowLimits()), time_ms)
        touched.append(
            TouchedUser(
                b"",
                user_id(number),
                True,
                "default",
                0,
                row,
                is_due=True,
                request_ms=_NOW_MS,
                coalesced=1,
            )
        )
    live.statistics.statistics.apply(deltas.as_deltas(live.index))
    ranker = ModelRanker(
        release, live.index, live.catalogue, settings.device, settings.inference_threads
    )
    live.ranker = ranker
    return _World(settings, live, ranker, live.tensors(), touched)


def _fill_catalogue(live: LiveParts, ids: list[str]) -> None:
    """Two categories for every item."""
    for number, item in enumerate(ids):
        categories = [f"category-{n % _CATEGORIES}" for n in (number, number // _CATEGORIES)]
        live.catalogue.take(item.encode(), encode(Item(item, 1, categories=categories)))


class _Columns:
    """What generated events add to the statistics."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.previous: list[list[int]] = []
        self.times_ms: list[int] = []

    def add(self, item: int, previous: list[int], times_ms: int) -> None:
        """One event."""
        self.items.append(item)
        self.previous.append(previous + [0] * (CHAIN_DEPTH - len(previous)))
        self.times_ms.append(times_ms)

    def as_deltas(self, index: ItemIndex) -> Deltas:
        """All of them; hashes become rows, where there is none NO_ROW."""
        count = len(self.items)
        hashes = np.array(self.previous, dtype=np.uint64).ravel()
        return Deltas(
            0,
            np.arange(count),
            np.array(self.items, dtype=np.int64),
            index.rows_of_hashes(hashes).reshape(count, CHAIN_DEPTH),
            np.array(self.times_ms, dtype=np.int64),
            np.full(count, 16, dtype=np.int64),
        )
