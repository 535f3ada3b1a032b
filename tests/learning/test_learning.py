"""What is learned from a stream, and what it is measured against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from streams import QUICK, START_MS, corpus_of, made_up_events

from export.items import NO_ROW
from export.statistics import CHAIN_DEPTH, Deltas, ItemStatistics
from models import offline
from models.corpus import Corpus, read_corpus
from models.evaluate import BASELINE, SHARES, rank_examples
from models.examples import newest
from models.losses import expert_shares
from models.network import LiveInputs
from models.pipeline import Trained, train_cold
from models.prequential import CHOSEN, Play, play, until
from models.settings import TrainerSettings
from models.train import TrainSettings, sampled_items


def test_a_model_learns_what_the_live_parts_leave_over(trained: Trained) -> None:
    which = trained.validation.is_returning
    best = max((ranks[which] <= 10).mean() for ranks in trained.validation.by_share.values())

    assert best > (trained.validation.ranks[BASELINE][which] <= 10).mean()


def test_without_a_pattern_the_list_stays_close_to_the_live_parts() -> None:
    rng = np.random.default_rng(3)
    noise = [
        (f"u{rng.integers(50)}", f"i{rng.integers(200)}", START_MS + n * 60_000)
        for n in range(2000)
    ]

    trained = train_cold(corpus_of(noise), QUICK)

    ranking = trained.validation
    which = ranking.is_returning
    ours, theirs = ranking.by_share[trained.share][which], ranking.ranks[BASELINE][which]
    assert (ours <= 50).mean() >= (theirs <= 50).mean() - 0.03


def test_the_untrained_residual_leaves_the_mix_of_the_experts_as_it_is(corpus: Corpus) -> None:
    trained = train_cold(corpus, QUICK)
    model = trained.model.eval()
    torch.nn.init.zeros_(model.scale)
    batch = corpus.batches(trained.catalogue).batch(
        np.arange(2900, 2930), np.arange(corpus.examples.n_items)
    )
    live = batch.with_vectors(model.tower)

    with torch.no_grad():
        logits, mix = model(live), model.mix(live)

    allowed = model.allowed(live)
    torch.testing.assert_close(logits[allowed], torch.log(mix + 1e-9)[allowed])


def test_the_last_block_for_the_last_event_alone_is_exact(trained: Trained) -> None:
    block = trained.model.eval().blocks[-1]
    x = torch.randn(4 * 9, trained.model.config.width)
    lengths = torch.tensor([1, 4, 9, 2])
    bias = torch.where(torch.arange(9) < lengths[:, None], 0.0, -1e9)[:, None, None]
    newest = torch.arange(4) * 9 + lengths - 1

    with torch.no_grad():
        whole = block(x, bias)[newest]
        alone = block(x, bias, newest)

    torch.testing.assert_close(whole, alone)


def test_examples_hold_what_a_plain_fold_of_the_log_knows(corpus: Corpus) -> None:
    x = corpus.examples
    statistics = ItemStatistics(_index(corpus))
    histories: dict[int, list[int]] = {}
    pending: list[tuple[int, int, np.ndarray, int]] = []
    users: set[int] = set()
    popularity = statistics.popularity()
    for number in range(320):
        user, item = int(x.events.users[number]), int(x.events.items[number])
        if user in users or len(pending) == 32:
            offsets, items, befores, times_ms = (np.array(c) for c in zip(*pending, strict=True))
            weights_16 = np.full(len(pending), 16)
            statistics.apply(Deltas(0, offsets, items, befores, times_ms, weights_16))
            popularity = statistics.popularity()
            pending, users = [], set()
        newest_first = histories.get(user, [])[::-1][:CHAIN_DEPTH]

        rows, weights = statistics.chain(newest_first)
        begin, end = x.chain_ends[number], x.chain_ends[number + 1]
        np.testing.assert_array_equal(x.chain_rows[begin:end], rows)
        np.testing.assert_allclose(x.chain_weights[:, begin:end], weights, rtol=1e-6)
        np.testing.assert_allclose(x.snapshots[x.snapshot_at[number]], popularity)

        previous = np.full(CHAIN_DEPTH, NO_ROW)
        previous[: len(newest_first)] = newest_first
        pending.append((number, item, previous, int(x.events.times_ms[number])))
        users.add(user)
        histories.setdefault(user, []).append(item)


def _index(corpus: Corpus) -> object:
    from export.items import ItemIndex

    index = ItemIndex()
    index.rows(corpus.names.item_ids)
    return index


def test_a_batch_never_shows_what_comes_later(corpus: Corpus) -> None:
    whole, early = corpus.examples, until(corpus.examples, 2000)
    numbers = np.arange(1900, 2000)
    known = np.flatnonzero(whole.first_event < 2000)
    catalogue = corpus.catalogue(2000)

    batches = [
        Corpus(x, corpus.names, True).batches(catalogue).batch(numbers, known)
        for x in (whole, early)
    ]

    for name in LiveInputs._fields:
        torch.testing.assert_close(getattr(batches[0].live, name), getattr(batches[1].live, name))


def test_experts_shares_are_those_of_the_whole_distributions() -> None:
    corpus = corpus_of(made_up_events(800), filters_seen=True)
    batches = corpus.batches(corpus.catalogue(800))
    items = np.arange(corpus.examples.n_items)
    live = batches.batch(np.arange(700, 740), items).live
    targets = torch.from_numpy(corpus.examples.events.items[700:740])
    V = len(items)
    seen = torch.zeros(40, V + 1).scatter_(1, live.seen_rows, 1.0)
    seen[:, V] = 0

    share, allowed = expert_shares(live, targets, seen)

    for expert, weights in enumerate(live.chain_weights, start=2):
        dense = torch.zeros(40, V).scatter_add_(1, live.chain_rows, weights)
        torch.testing.assert_close(share[:, expert], dense.gather(1, targets[:, None])[:, 0])
        torch.testing.assert_close(allowed[:, expert], (dense * (1 - seen[:, :V])).sum(1))
    for expert, dense in enumerate(live.popularity):
        torch.testing.assert_close(share[:, expert], dense.gather(1, targets[:, None])[:, 0])
        torch.testing.assert_close(
            allowed[:, expert], (dense * (1 - seen[:, :V])).sum(1), rtol=1e-4, atol=1e-5
        )


def test_a_corpus_is_read_as_it_was_written(corpus: Corpus, tmp_path: Path) -> None:
    kept = Corpus(newest(corpus.examples, 500), corpus.names, True)

    kept.write(tmp_path)
    read = read_corpus(tmp_path)

    assert read.names == corpus.names
    assert read.filters_seen
    numbers, items = np.arange(2600, 2650), np.arange(corpus.examples.n_items)
    catalogue = corpus.catalogue(3000)
    ours = read.batches(catalogue).batch(numbers, items).live
    wanted = Corpus(corpus.examples, corpus.names, True).batches(catalogue)
    for one, other in zip(ours, wanted.batch(numbers, items).live, strict=True):
        torch.testing.assert_close(one, other)


def test_snapshots_of_popularity_keep_to_their_budget() -> None:
    corpus = corpus_of(made_up_events(2000), snapshot_bytes=10_000)

    assert corpus.examples.snapshots.nbytes <= 10_000
    assert (np.diff(corpus.examples.snapshot_at) >= 0).all()


def test_memory_of_a_long_log_is_bounded() -> None:
    corpus = corpus_of(made_up_events(3000), max_events=500, max_examples=200)

    x = corpus.examples
    assert len(x) - x.first <= 232
    trained = train_cold(corpus, QUICK)
    assert torch.isfinite(trained.model.tower.id_output.weight).all()


def test_playing_a_stream_ranks_every_event_once(corpus: Corpus) -> None:
    ranking = play(corpus, Play(2000, 500), QUICK)

    assert ranking.numbers.tolist() == list(range(2000, 3000))
    assert set(ranking.by_share) == {CHOSEN}


def test_a_share_of_zero_is_the_list_of_the_live_parts(trained: Trained, corpus: Corpus) -> None:
    ranking = rank_examples(
        trained.model, corpus.batches(trained.catalogue), np.arange(2500, 3000), SHARES
    )

    np.testing.assert_array_equal(ranking.by_share[0.0], ranking.ranks[BASELINE])


@pytest.mark.parametrize(
    ("data_format", "seen"), [("movietweetings", "filter"), ("rsc15", "allow")]
)
def test_real_data_trains_to_a_release_that_may_go_live(
    data: Path, tmp_path: Path, data_format: str, seen: str
) -> None:
    settings = TrainerSettings(registry=str(tmp_path), seen_items=seen)
    corpus, offsets = offline.corpus_of_data(data / data_format, data_format, 3000, settings)

    published = offline.train_release(corpus, offsets, settings, QUICK, threads=1)

    assert published.refusals == []
    row = published.metrics["returning"]
    assert row["driftline"]["HR@50"] >= row["chain + popularity"]["HR@50"] - 0.02


def test_sampled_items_stand_for_all_and_hold_every_target(corpus: Corpus) -> None:
    batches = corpus.batches(corpus.catalogue(3000))
    numbers, known = np.arange(2000, 2064), np.arange(corpus.examples.n_items)
    few = TrainSettings(likely=20, negatives=10)

    rows, stands_for = sampled_items(batches, numbers, known, few, np.random.default_rng(1))

    assert len(rows) == len(set(rows.tolist())) < len(known)
    assert stands_for.sum() == pytest.approx(len(known))
    assert np.isin(corpus.examples.events.items[numbers], rows[stands_for == 1]).all()


def test_a_model_learns_from_sampled_items_too(corpus: Corpus) -> None:
    sampling = replace(QUICK.train, full_softmax_items=0, likely=30, negatives=20)

    trained = train_cold(corpus, replace(QUICK, train=sampling, finish=sampling))

    which = trained.validation.is_returning
    best = max((ranks[which] <= 10).mean() for ranks in trained.validation.by_share.values())
    assert best > (trained.validation.ranks[BASELINE][which] <= 10).mean()
