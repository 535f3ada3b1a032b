"""Simulate users whose interests move, over a catalogue whose items appear and age.

The model. C categories of K items each. A user's own clicks are numbered n = 0, 1, 2, ...; t is
time. In the order in which a click comes about:

*Interests.* A user has a leaning towards each category, b_c = 2 * archetype_c + normal(0, 0.7): one
of twelve archetypes, which lean to two to four categories each, and something of his own. It
moves in two ways:

    z_c(n, t) = b_c + DRIFT * sin(2 pi (n / P + phase_c)) + SEASON_c * cos(2 pi (t - peak_c) / T)
    v = softmax(z)

*Drift* takes P = 80 to 200 clicks for a round. *Season* returns every T (`season_ms`, a week): the
categories with an odd number peak on Sundays at noon, the others have none.

*Jump.* Every 25 + geometric(1 / 35) clicks a user discovers one of the six categories that matter
least to him, g. From that click (n_j) on a part beta of what he does is of it:

    w = (1 - beta) v + beta e_g          beta = 0.8 * 2^(-(n - n_j) / 40)

w is the *truth*, see `truth`.

*Fatigue.* He tires of what he just had: each click adds 1 to f_c of its category, and every f is
multiplied by 0.85 from click to click. The category of a click is drawn from

    p_c  proportional to  w_c * exp(-0.12 f_c)

*Item.* In the category, of the items that have appeared, item i is drawn in proportion to

    a_i = exp(appeal_i + taste_topic(i)) * (0.1 + 0.9 exp(-age_i / 14 d)) * 0.02^taken_i

appeal ~ normal(0, 0.8) is the item's, taste ~ normal(0, 1) the user's for each of the K / 3 topics
of a category, taken is 1 where he took it before. With probability 0.35 it is instead the one
that follows the last item he took in the category (a fixed order of each category), if that one
has appeared and is new to him.

*Position bias.* A user who is shown a list looks at place m = 0, 1, ... with probability
1 / (1 + m), and takes what he sees there with probability 0.9 * w_c / max w * a_i / max a (the
maxima over categories, and over the category's items). The first item that he takes is the
click; if there is none, he acts as above without the list.

*Coming and going.* After 60 to 180 clicks (uniform) a user leaves, and another one with an
interest of his own takes the place. Which user acts next is drawn by how active each is
(log-normal, sigma 0.6).

Everything is drawn from one seed; appeal, order and archetypes from another, that of the world,
so that a model trained on one crowd meets another crowd in the same world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
DRIFT, DRIFT_CLICKS = 0.8, (80, 200)
SEASON = 1.0
#: Milliseconds from Thursday, 1970-01-01 to the first Sunday noon.
SEASON_PEAK_MS = DAY_MS * 7 // 2
JUMP_SHARE, JUMP_HALF_LIFE, JUMP_GAP, JUMP_MEAN = 0.8, 40.0, 25, 35.0
FATIGUE, FATIGUE_KEPT = 0.12, 0.85
AGEING_MS, OLD_APPEAL = 14.0 * DAY_MS, 0.1
TAKEN_APPEAL = 0.02
SERIES_SHARE = 0.35
ATTRACTION = 0.9
LIFE_CLICKS = (60, 180)
ARCHETYPES = 12
ITEMS_PER_TOPIC = 3


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """How many users act at a time, and what decides all that is random."""

    users: int = 400
    seed: int = 1
    world_seed: int = 0
    season_ms: int = WEEK_MS


@dataclass(frozen=True, slots=True)
class Clicks:
    """N clicks in the order of time, as columns."""

    users: Ints  # [N] number of the user; never given to another one
    items: Ints  # [N] category * K + place in it
    times_ms: Ints  # [N]
    positions: Ints  # [N] place in the list that was shown; -1: found without it
    since_jump: Ints  # [N] clicks since the user's last jump, this one too; 0: has not jumped
    jumped_to: Ints  # [N] category of the last jump; -1: has not jumped


@dataclass(frozen=True, slots=True)
class Jump:
    """The last jump of a user."""

    category: int
    time_ms: int
    clicks: int  # since then; 1 at the click that began it


class Simulator:
    """Users 0 to U - 1 act in a world of C * K items; see the module for how.

    `users` of the methods are places, of which one holds another user after a while: see `numbers`.
    """

    def __init__(self, settings: SimulatorSettings, born_ms: Ints) -> None:
        """`born_ms`: [C, K] when each item appears; K a multiple of three."""
        self._season_ms = settings.season_ms
        self._rng = np.random.default_rng(settings.seed)
        self.born_ms = born_ms
        C, K = born_ms.shape
        U = settings.users
        self._draw_world(np.random.default_rng(settings.world_seed), C, K)
        self.numbers: Ints = np.arange(U)  # [U] of the user who has the place now
        self._activity = np.cumsum(np.exp(self._rng.normal(0.0, 0.6, U)))
        self._leaning = np.zeros((U, C))
        self._phase = np.zeros((U, C))
        self._period = np.zeros(U)
        self._taste = np.zeros((U, C, K // ITEMS_PER_TOPIC), dtype=np.float32)
        self._clicks = np.zeros(U, dtype=np.int64)
        self._life = np.zeros(U, dtype=np.int64)
        self._tired = np.zeros((U, C))
        self._last = np.full((U, C), -1)  # place in the category of the item taken last
        self._taken = np.zeros((U, C, K), dtype=bool)
        self._next_jump = np.zeros(U, dtype=np.int64)
        self._jump_from = np.zeros(U, dtype=np.int64)  # number of the click that began it
        self._jump_to = np.full(U, -1)
        self._jump_ms = np.zeros(U, dtype=np.int64)
        self._arrive(np.arange(U))

    def clicks(self, count: int, from_ms: int, to_ms: int) -> Clicks:
        """Play `count` clicks without lists, at times spread evenly at random over a span.

        Of any U / 8 clicks in a row no two are of one user.
        """
        times_ms = np.sort(self._rng.integers(from_ms, to_ms, count))
        size = max(1, len(self.numbers) // 8)
        chunks, done = [], 0
        while done < count:
            users = self.draw_users(min(size, count - done))
            _, first = np.unique(users, return_index=True)
            users = users[np.sort(first)]
            chunks.append(self.act(users, times_ms[done : done + len(users)]))
            done += len(users)
        return Clicks(
            *(
                np.concatenate([getattr(chunk, name) for chunk in chunks])
                for name in Clicks.__dataclass_fields__
            )
        )

    def draw_users(self, count: int) -> Ints:
        """[count] who acts next, with repetitions: the more active, the more often."""
        drawn = self._rng.random(count) * self._activity[-1]
        users: Ints = np.searchsorted(self._activity, drawn, side="right")
        return users

    def act(self, users: Ints, times_ms: Ints, shown: Ints | None = None) -> Clicks:
        """One click each of B different users, at rising times.

        `shown`: [B, M] items of the list before each user, -1 where there is none.
        """
        at_ms = int(times_ms[0])
        self._jump(users, times_ms)
        truth = self.truth(users, times_ms)  # [B, C]
        items, positions = self._organic(users, truth, at_ms), np.full(len(users), -1)
        if shown is not None:
            positions = self._from_list(users, truth, at_ms, shown)
            listed = np.take_along_axis(shown, np.maximum(positions, 0)[:, None], axis=1)[:, 0]
            items = np.where(positions >= 0, listed, items)
        has_jumped = self._jump_to[users] >= 0
        clicks = Clicks(
            self.numbers[users],
            items,
            times_ms,
            positions,
            np.where(has_jumped, self._clicks[users] - self._jump_from[users] + 1, 0),
            self._jump_to[users],
        )
        self._fold(users, items)
        return clicks

    def truth(self, users: Ints, times_ms: Ints) -> Floats:
        """[B, C] what share of their interest goes to each category at their next click (w)."""
        n = self._clicks[users][:, None]
        turn = n / self._period[users][:, None] + self._phase[users]
        z = self._leaning[users] + DRIFT * np.sin(2 * np.pi * turn)
        season = np.cos(2 * np.pi * ((times_ms - SEASON_PEAK_MS) / self._season_ms))
        z[:, 1::2] += SEASON * season[:, None]
        w: Floats = np.exp(z - z.max(axis=1, keepdims=True))
        w /= w.sum(axis=1, keepdims=True)
        target = self._jump_to[users]
        age = self._clicks[users] - self._jump_from[users]
        beta = np.where(target >= 0, JUMP_SHARE * 2.0 ** (-age / JUMP_HALF_LIFE), 0.0)
        w *= 1.0 - beta[:, None]
        w[np.arange(len(users)), target] += beta  # beta is 0 where the target is none
        return w

    def last_jump(self, user: int) -> Jump | None:
        """The last jump of the user at a place; None if there was none."""
        if self._jump_to[user] < 0:
            return None
        since = int(self._clicks[user] - self._jump_from[user])
        return Jump(int(self._jump_to[user]), int(self._jump_ms[user]), since)

    def _draw_world(self, rng: np.random.Generator, C: int, K: int) -> None:
        self._appeal = np.exp(rng.normal(0.0, 0.8, (C, K)))
        order = rng.permuted(np.tile(np.arange(K), (C, 1)), axis=1)
        self._follower = np.empty((C, K), dtype=np.int64)
        np.put_along_axis(self._follower, order, np.roll(order, -1, axis=1), axis=1)
        self._archetypes = np.zeros((ARCHETYPES, C))
        for archetype in self._archetypes:
            archetype[rng.choice(C, min(C, int(rng.integers(2, 5))), replace=False)] = 2.0

    def _arrive(self, users: Ints) -> None:
        """Somebody new at each of these places."""
        rng, B = self._rng, len(users)
        C, topics = self._taste.shape[1:]
        self._leaning[users] = rng.normal(0.0, 0.7, (B, C))
        self._leaning[users] += self._archetypes[rng.integers(0, ARCHETYPES, B)]
        self._phase[users] = rng.random((B, C))
        self._period[users] = rng.uniform(*DRIFT_CLICKS, B)
        self._taste[users] = np.exp(rng.normal(0.0, 1.0, (B, C, topics)))
        self._clicks[users] = 0
        self._life[users] = rng.integers(*LIFE_CLICKS, B)
        self._tired[users] = 0.0
        self._last[users] = -1
        self._taken[users] = False
        self._next_jump[users] = JUMP_GAP + rng.geometric(1 / JUMP_MEAN, B)
        self._jump_to[users] = -1

    def _jump(self, users: Ints, times_ms: Ints) -> None:
        """Give those who jump at this click their new interest."""
        which = np.flatnonzero(self._clicks[users] == self._next_jump[users])
        if not len(which):
            return
        users, times_ms = users[which], times_ms[which]
        least = np.argsort(self.truth(users, times_ms), axis=1)[
            :, : (self._leaning.shape[1] + 1) // 2
        ]
        drawn = self._rng.integers(0, least.shape[1], len(users))
        self._jump_to[users] = least[np.arange(len(users)), drawn]
        self._jump_from[users] = self._clicks[users]
        self._jump_ms[users] = times_ms
        self._next_jump[users] += JUMP_GAP + self._rng.geometric(1 / JUMP_MEAN, len(users))

    def _organic(self, users: Ints, truth: Floats, at_ms: int) -> Ints:
        """[B] items that the users find by themselves."""
        _, K = self.born_ms.shape
        categories = self._drawn(truth * np.exp(-FATIGUE * self._tired[users]))
        weights = self._attraction(users, categories, at_ms)  # [B, K]
        places = self._drawn(weights)
        last = self._last[users, categories]
        following = self._follower[categories, last]
        goes_on = (last >= 0) & (self._rng.random(len(users)) < SERIES_SHARE)
        goes_on &= self.born_ms[categories, following] <= at_ms
        goes_on &= ~self._taken[users, categories, following]
        items: Ints = categories * K + np.where(goes_on, following, places)
        return items

    def _attraction(self, users: Ints, categories: Ints, at_ms: int) -> Floats:
        """[B, K] a_i of the items of one category for each user."""
        fresh = self._freshness(at_ms)[categories]
        taste = np.repeat(self._taste[users, categories], ITEMS_PER_TOPIC, axis=1)
        taken = np.where(self._taken[users, categories], TAKEN_APPEAL, 1.0)
        weights: Floats = fresh * taste * taken
        return weights

    def _freshness(self, at_ms: int) -> Floats:
        """[C, K] what appeal and age make of every item; 0 before it appears."""
        age = at_ms - self.born_ms
        kept = OLD_APPEAL + (1 - OLD_APPEAL) * np.exp(-np.maximum(age, 0) / AGEING_MS)
        fresh: Floats = np.where(age >= 0, self._appeal * kept, 0.0)
        return fresh

    def _from_list(self, users: Ints, truth: Floats, at_ms: int, shown: Ints) -> Ints:
        """[B] the place that each user clicks in the list before him; -1: none."""
        B, M = shown.shape
        _, K = self.born_ms.shape
        categories, places = np.divmod(np.maximum(shown, 0), K)  # [B, M]
        flat = self._attraction(np.repeat(users, M), categories.ravel(), at_ms).reshape(B, M, K)
        own = np.take_along_axis(flat, places[:, :, None], axis=2)[:, :, 0]
        item = own / np.maximum(flat.max(axis=2), 1e-12)
        interest = np.take_along_axis(truth, categories, axis=1) / truth.max(axis=1, keepdims=True)
        chance = ATTRACTION * interest * item / (1.0 + np.arange(M))
        takes = (self._rng.random((B, M)) < chance) & (shown >= 0)
        clicked: Ints = np.where(takes.any(axis=1), takes.argmax(axis=1), -1)
        return clicked

    def _drawn(self, weights: Floats) -> Ints:
        """[B] one column of each row, in proportion to its weight."""
        sums = np.cumsum(weights, axis=1)
        drawn = self._rng.random(len(weights)) * sums[:, -1]
        columns: Ints = (sums <= drawn[:, None]).sum(axis=1)
        return columns

    def _fold(self, users: Ints, items: Ints) -> None:
        """Remember what was taken, and let those leave whose time is over."""
        categories, places = np.divmod(items, self.born_ms.shape[1])
        self._tired[users] *= FATIGUE_KEPT
        self._tired[users, categories] += 1.0
        self._last[users, categories] = places
        self._taken[users, categories, places] = True
        self._clicks[users] += 1
        leaving = users[self._clicks[users] >= self._life[users]]
        if len(leaving):
            self.numbers[leaving] += len(self.numbers)
            self._arrive(leaving)
