"""Rank the due users of a batch, a micro-batch at a time, and make the messages of their lists.

While a thread ranks one micro-batch, the messages of the one before are made on the event loop:
ONNX Runtime lets go of the GIL. What is done for every user here is little more than joining bytes;
all that can be done for a micro-batch at once is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stream import metrics
from stream.control import hidden_rows
from stream.events import encode
from stream.folded_batch import TouchedUser
from stream.interests import UserInterests, user_interests
from stream.list_texts import ListTexts, candidates_text, items_text, score_texts
from stream.lists import (
    MAX_CANDIDATES,
    Refresh,
    RefreshContext,
    cloud_event_headers,
    list_key,
    list_policy,
    messages,
    state_digest,
)
from stream.live import LiveParts
from stream.outbox import Outbox
from stream.ranker import RankedLists
from stream.reasons import ReasonTexts, reasons_of
from stream.requests import NO_TENSORS, UserColumns, build_columns
from stream.settings import Settings

#: Whether a list, as hashes of its items, is worth sending to a user.
IsWorthSending = Callable[[TouchedUser, NDArray[np.uint64]], bool]


class Ranking:
    """Makes the lists of one worker."""

    def __init__(
        self, settings: Settings, live: LiveParts, is_worth_sending: IsWorthSending
    ) -> None:
        self._settings = settings
        self._live = live
        self._is_worth_sending = is_worth_sending
        self._policy = list_policy(settings)
        self._texts = ListTexts(live.index.ids, live.catalogue.labels)
        self._reason_texts = ReasonTexts(self._texts)
        self._topics = {
            name: settings.topic(name) for name in ("recommendations", "decisions", "interests")
        }
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rank")

    async def add_lists(
        self, due: Sequence[TouchedUser], now_ms: int, outbox: Outbox
    ) -> tuple[Counter[str], RefreshContext]:
        """Rank for users, and put in their lists with what goes with them.

        Their rows take in what is sent. Returns how many lists came of what, and what all have in
        common: one release and one position of the statistics, whatever moves on meanwhile.
        """
        context = self.context(now_ms, bool(due))
        if not len(context.live.known):
            due = []
        size, loop = self._settings.max_rank_batch, asyncio.get_running_loop()
        micro_batches = [due[start : start + size] for start in range(0, len(due), size)]
        asked, ranked = [], []
        for users in micro_batches:
            # all before the first wait: statistics and ranker move on while this coroutine waits,
            # and only then; the thread is at the first micro-batch meanwhile
            columns = self.columns(users, context)
            asked.append(columns)
            ranked.append(loop.run_in_executor(self._thread, self.rank, columns, context))
        reasons: Counter[str] = Counter()
        for users, columns, lists in zip(micro_batches, asked, ranked, strict=True):
            listed = self.add_ranked(users, columns, await lists, context, outbox)
            reasons.update([user.reason for user in listed])
        return reasons, context

    def context(self, now_ms: int, has_due: bool) -> RefreshContext:
        """What the lists of a batch that is ranked now have in common."""
        live = self._live
        return RefreshContext(
            live.ranker,
            live.ranking_tensors() if has_due else NO_TENSORS,
            dict(live.catalogue_positions),
            self._policy,
            now_ms,
            live.catalogue.columns(),
        )

    def columns(self, users: Sequence[TouchedUser], context: RefreshContext) -> UserColumns:
        """What is known of users, as it is now."""
        live = self._live
        return build_columns(
            [(user.row, user.request_ms) for user in users],
            live.index,
            live.statistics.statistics,
            context.ranker.event_types,
            len(context.live.known),
            self._settings.seen_items == "filter",
            hidden_rows(live.index, live.catalogue),
        )

    def rank(self, columns: UserColumns, context: RefreshContext) -> RankedLists:
        """The best items of a micro-batch; for the thread, one call at a time."""
        return context.ranker.rank(columns.requests, context.live, self._settings.list_length)

    def add_ranked(
        self,
        users: Sequence[TouchedUser],
        columns: UserColumns,
        ranked: RankedLists,
        context: RefreshContext,
        outbox: Outbox,
    ) -> list[TouchedUser]:
        """Put in what was ranked for a micro-batch; returns whose list is sent."""
        index, texts = self._live.index, self._texts
        lists = ranked.ordered(index.hashes, self._settings.list_length)
        hashes = index.hashes.take(lists.rows)  # [B, k]
        lengths = (lists.scores > 0).sum(axis=1)
        requests_ms = [user.request_ms for user in users]
        reasons = reasons_of(columns, lists, requests_ms, context.catalogue)
        interests = user_interests(
            columns.histories, lists.rows, lists.scores, lengths, context.catalogue, texts
        )
        scores, width = score_texts(lists.scores.ravel().tolist()), lists.rows.shape[1]
        self._take_away_empty(
            [users[place] for place in np.flatnonzero(lengths == 0).tolist()], outbox
        )
        sent = []
        for place, (user, length) in enumerate(zip(users, lengths.tolist(), strict=True)):
            items = hashes[place, :length]
            if not length or not self._is_worth_sending(user, items):
                continue
            heads = texts.heads(lists.rows[place, :length].tolist())
            mine = scores[place * width : place * width + length]
            refresh = Refresh(
                user,
                user.row.seq + 1,
                state_digest(user),
                items_text(heads, mine, reasons.of(place, length, self._reason_texts)),
                candidates_text(heads[:MAX_CANDIDATES], mine[:MAX_CANDIDATES]),
            )
            self._add(refresh, items, interests[place], context, outbox)
            sent.append(user)
        return sent

    def _add(
        self,
        refresh: Refresh,
        items: NDArray[np.uint64],
        interests: UserInterests,
        context: RefreshContext,
        outbox: Outbox,
    ) -> None:
        """Put in a list with what goes with it, and enter it into its user's row."""
        topics, user, row = self._topics, refresh.user, refresh.user.row
        recommendation, decision = messages(refresh, context, self._settings)
        key, partition = list_key(user), user.partition
        headers = cloud_event_headers(recommendation) if self._settings.cloud_events else None
        outbox.add(topics["recommendations"], partition, key, encode(recommendation), headers)
        if decision is not None:
            outbox.add(topics["decisions"], partition, key, encode(decision))
        row.seq = refresh.seq
        row.list_ms = user.request_ms
        row.served_list(bytes.fromhex(recommendation.rec_id)[:8], items)
        user.is_changed = True
        digest = interests.digest()
        if interests.are_known and digest != row.interests_digest:
            row.interests_digest = digest
            message = encode(interests.message(user, refresh.seq))
            outbox.add(topics["interests"], partition, key, message)

    def _take_away_empty(self, empty: Sequence[TouchedUser], outbox: Outbox) -> None:
        """A list of which nothing is left by its user's filters must not stay as it was."""
        metrics.EMPTY_LISTS.inc(len(empty))
        for user in empty:
            if user.row.filters:
                user.row.served = b""  # so that the next list is sent, however like the last one
                user.is_changed = True
                outbox.add(self._topics["recommendations"], user.partition, list_key(user), None)
