"""The simulated broker and a real Kafka answer the same script of operations in the same way."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
from aiokafka.errors import OffsetOutOfRangeError, OutOfOrderSequenceNumber, ProducerFenced
from aiokafka.structs import ConsumerRecord
from brokers import REBALANCE_S, SESSION_S, AnyBroker, RealKafka, Simulated, until

from stream.kafka.epochs import LAST_EPOCH, EpochTakenError
from stream.simulate.broker import Entry

T0_MS = 1_700_000_000_000
#: More than a segment of the compacted topic lasts.
NEXT_SEGMENT_MS = 3_600_000


@pytest.fixture(params=["simulated", "kafka"])
async def broker(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[AnyBroker]:
    if request.param == "simulated":
        yield Simulated()
        return
    kafka = RealKafka(request.getfixturevalue("kafka").bootstrap, prefix)
    await kafka.start()
    yield kafka
    await kafka.close()


def entries(*values: bytes) -> list[Entry]:
    return [(b"key of " + value, value, ()) for value in values]


def offsets(records: list[ConsumerRecord]) -> list[int]:
    return [record.offset for record in records]


# -- logs ---------------------------------------------------------------------------------------


async def test_a_batch_is_acknowledged_with_its_first_offset_and_partitions_count_alone(
    broker: AnyBroker,
):
    acknowledged = [
        await broker.produce("events", 0, entries(b"a", b"b", b"c"), T0_MS),
        await broker.produce("events", 1, entries(b"d", b"e"), T0_MS + 1),
        await broker.produce("events", 0, entries(b"f"), T0_MS - 5),
        await broker.produce("events", 0, entries(b"g", b"h"), T0_MS),
    ]

    assert [(a.partition, a.offset) for a in acknowledged] == [(0, 0), (1, 0), (0, 3), (0, 4)]
    assert {(a.timestamp, a.timestamp_type, a.log_start_offset) for a in acknowledged} == {
        (-1, 0, 0)
    }
    assert await broker.ends("events") == [6, 2, 0]
    assert await broker.begins("events") == [0, 0, 0]


async def test_a_record_is_read_as_it_was_written(broker: AnyBroker):
    written: list[Entry] = [
        (b"key", b"value", (("name", b"text"), ("name", b"again"))),
        (b"key", None, ()),
        (None, b"value", (("empty", b""),)),
        (b"", b"", ()),
    ]

    await broker.produce("events", 2, written, T0_MS)
    read = await broker.read("events", 2, 0)

    assert [(r.key, r.value, tuple(r.headers)) for r in read] == written
    assert offsets(read) == [0, 1, 2, 3]
    assert {(r.partition, r.timestamp, r.timestamp_type) for r in read} == {(2, T0_MS, 0)}
    assert [r.serialized_key_size for r in read] == [3, 3, -1, 0]
    assert [r.serialized_value_size for r in read] == [5, -1, 5, 0]
    assert {r.checksum for r in read} == {None}


async def test_reading_begins_at_any_offset_and_ends_at_the_end(broker: AnyBroker):
    for first in range(0, 9, 3):
        await broker.produce("events", 0, entries(*(b"%d" % n for n in range(first, first + 3))), 0)

    read = [offsets(await broker.read("events", 0, offset)) for offset in range(10)]

    assert read == [list(range(offset, 9)) for offset in range(10)]


async def test_an_offset_beyond_the_end_is_refused(broker: AnyBroker):
    await broker.produce("events", 0, entries(b"a", b"b"), T0_MS)

    with pytest.raises(OffsetOutOfRangeError):
        await broker.read("events", 0, 3)


async def test_compaction_keeps_the_newest_of_each_key_where_it_was(broker: AnyBroker):
    rng = random.Random(7)
    written: list[Entry] = []
    for batch in range(12):
        some: list[Entry] = [
            (b"key-%d" % rng.randrange(6), rng.choice([b"%d" % batch, None]), ()) for _ in range(5)
        ]
        await broker.produce("rows", 1, some, T0_MS + batch)
        written += some
    below = len(written)
    await broker.produce("rows", 1, [(b"key-0", b"active", ())], T0_MS + NEXT_SEGMENT_MS)

    await broker.compact("rows", 1, below)
    read = await broker.read("rows", 1, 0)

    newest = {key: offset for offset, (key, _, _) in enumerate(written)}
    assert offsets(read) == [*sorted(newest.values()), below]
    assert [(r.key, r.value) for r in read[:-1]] == [written[r.offset][:2] for r in read[:-1]]
    assert await broker.ends("rows") == [0, below + 1, 0]
    assert await broker.begins("rows") == [0, 0, 0]
    hole = next(offset for offset in range(below) if offset not in newest.values())
    assert offsets(await broker.read("rows", 1, hole)) == [at for at in offsets(read) if at > hole]

    follows = await broker.produce("rows", 1, [(b"key-1", b"later", ())], T0_MS + NEXT_SEGMENT_MS)
    assert follows.offset == below + 1


# -- producers ----------------------------------------------------------------------------------


async def test_a_transactional_id_keeps_its_producer_id_and_each_time_gets_the_next_epoch(
    broker: AnyBroker,
):
    first, second, third = [await broker.next_epoch("one") for _ in range(3)]
    other = await broker.next_epoch("other")

    assert first[1] == 0
    assert [second, third] == [(first[0], 1), (first[0], 2)]
    assert other[0] != first[0]
    assert other[1] == 0


async def test_an_epoch_that_is_to_follow_one_is_given_while_that_is_the_newest(
    broker: AnyBroker,
):
    first = await broker.next_epoch("one")
    second = await broker.next_epoch("one", after=first)
    assert await broker.next_epoch("one", after=first) == second  # its answer may have been lost
    third = await broker.next_epoch("one")

    for former in (first, second):
        with pytest.raises(EpochTakenError):
            await broker.next_epoch("one", after=former)

    assert [second, third] == [(first[0], 1), (first[0], 2)]
    assert await broker.next_epoch("one", after=third) == (first[0], 3)


async def test_of_an_older_epoch_nothing_is_taken_once_a_newer_one_has_written(broker: AnyBroker):
    former, next_one = [await broker.next_epoch("one") for _ in range(2)]
    written = [
        await broker.produce("rows", 0, entries(b"a"), T0_MS, (*former, 0)),
        await broker.produce("rows", 0, entries(b"b", b"c"), T0_MS, (*former, 1)),
        await broker.produce("rows", 0, entries(b"d"), T0_MS, (*next_one, 0)),
    ]

    for sequence in (3, 0):  # the next one, and one that is there
        with pytest.raises(ProducerFenced):
            await broker.produce("rows", 0, entries(b"a"), T0_MS, (*former, sequence))

    assert [a.offset for a in written] == [0, 1, 3]
    assert [r.value for r in await broker.read("rows", 0, 0)] == [b"a", b"b", b"c", b"d"]
    assert await broker.producers_of("rows", 0) == {next_one[0]: next_one[1]}
    # of another partition, and of one that is no producer, it is not
    other = await broker.produce("rows", 1, entries(b"e"), T0_MS, (*former, 3))
    plain = await broker.produce("rows", 0, entries(b"f"), T0_MS)
    assert (other.offset, plain.offset) == (0, 4)


async def test_a_batch_that_comes_again_lies_where_it_lay_and_is_not_written_again(
    broker: AnyBroker,
):
    producer = await broker.next_epoch("one")
    await broker.produce("rows", 0, entries(b"a", b"b"), T0_MS, (*producer, 0))
    await broker.produce("rows", 0, entries(b"plain"), T0_MS)
    await broker.produce("rows", 0, entries(b"c"), T0_MS, (*producer, 2))

    again = [
        await broker.produce("rows", 0, entries(b"a", b"b"), T0_MS, (*producer, 0)),
        await broker.produce("rows", 0, entries(b"c"), T0_MS, (*producer, 2)),
    ]

    assert [a.offset for a in again] == [0, 3]
    assert await broker.ends("rows") == [4, 0, 0]


async def test_behind_a_gap_and_in_the_middle_of_an_epoch_nothing_is_taken(broker: AnyBroker):
    producer = await broker.next_epoch("one")
    await broker.produce("rows", 0, entries(b"a"), T0_MS, (*producer, 0))
    newer = await broker.next_epoch("one")

    for refused in ((*producer, 2), (*newer, 1)):
        with pytest.raises(OutOfOrderSequenceNumber):
            await broker.produce("rows", 0, entries(b"b"), T0_MS, refused)

    taken = await broker.produce("rows", 0, entries(b"b"), T0_MS, (*producer, 1))
    assert taken.offset == 1


async def test_epochs_that_no_coordinator_gave_count_too(broker: AnyBroker):
    producer_id, _ = await broker.next_epoch("one")
    await broker.produce("rows", 0, entries(b"a"), T0_MS, (producer_id, LAST_EPOCH, 0))

    with pytest.raises(ProducerFenced):
        await broker.produce("rows", 0, entries(b"b"), T0_MS, (*await broker.next_epoch("one"), 0))


# -- the group ----------------------------------------------------------------------------------


async def alone(broker: AnyBroker, name: str) -> int:
    """The first member of the group."""
    await broker.join(name)
    return await broker.joined(name)


async def rebalancing(broker: AnyBroker, name: str, generation: int) -> None:
    """Heartbeat until the group rebalances."""
    await until(broker, "rebalance", lambda: broker.heartbeat(name, generation))


async def both(broker: AnyBroker) -> int:
    """The group of first and second, in its second generation."""
    generation = await alone(broker, "first")
    await broker.join("second")
    await rebalancing(broker, "first", generation)
    await broker.join("first")
    generation = await broker.joined("first")
    assert await broker.joined("second") == generation
    return generation


async def test_every_rebalance_is_a_generation(broker: AnyBroker):
    assert await alone(broker, "first") == 1
    assert await broker.heartbeat("first", 1) == "ok"

    await broker.join("second")
    await rebalancing(broker, "first", 1)
    await broker.join("first")

    assert [await broker.joined("first"), await broker.joined("second")] == [2, 2]
    assert [await broker.heartbeat(name, 2) for name in ("first", "second")] == ["ok", "ok"]


async def test_commits_are_kept_by_partition_and_the_last_one_counts(broker: AnyBroker):
    generation = await alone(broker, "first")
    assert await broker.committed() == {}

    replies = [
        await broker.commit("first", generation, {0: 5, 2: 7}),
        await broker.commit("first", generation, {0: 3, 1: 0}),
    ]

    assert replies == ["ok", "ok"]
    assert await broker.committed() == {0: 3, 1: 0, 2: 7}


async def test_who_is_of_another_generation_is_refused(broker: AnyBroker):
    generation = await both(broker)
    assert await broker.commit("first", generation, {0: 10}) == "ok"

    for other in (generation - 1, generation + 1, -1):
        assert await broker.commit("first", other, {0: 20}) == "illegal_generation"
        assert await broker.heartbeat("first", other) == "illegal_generation"

    assert await broker.committed() == {0: 10}


async def test_who_is_no_member_is_refused(broker: AnyBroker):
    generation = await alone(broker, "first")

    for some_generation in (generation, generation + 1, -1):
        assert await broker.commit("stranger", some_generation, {0: 20}) == "unknown_member"
        assert await broker.heartbeat("stranger", some_generation) == "unknown_member"

    assert await broker.committed() == {}


async def test_while_it_rebalances_commits_of_the_ending_generation_are_taken(broker: AnyBroker):
    generation = await alone(broker, "first")
    await broker.join("second")
    await rebalancing(broker, "first", generation)

    taken = await broker.commit("first", generation, {0: 4})
    refused = await broker.commit("first", generation - 1, {0: 5})
    await broker.join("first")
    after = await broker.joined("first")

    assert (taken, refused) == ("ok", "illegal_generation")
    assert await broker.commit("first", generation, {0: 6}) == "illegal_generation"
    assert after == generation + 1
    assert await broker.committed() == {0: 4}


async def test_who_has_left_is_unknown_and_comes_back_as_another_only(broker: AnyBroker):
    generation = await both(broker)

    await broker.leave("second")

    assert await broker.commit("second", generation, {0: 1}) == "unknown_member"
    assert await broker.heartbeat("second", generation) == "unknown_member"
    await broker.join("second")
    assert await broker.joined("second") == -1
    await rebalancing(broker, "first", generation)
    await broker.join("first")
    assert await broker.joined("first") == generation + 1


async def test_an_empty_group_keeps_its_offsets_and_takes_those_of_no_generation(
    broker: AnyBroker,
):
    generation = await alone(broker, "first")
    await broker.commit("first", generation, {0: 4, 1: 4})

    await broker.leave("first")

    assert await broker.commit("first", generation, {0: 9}) == "unknown_member"
    assert await broker.committed() == {0: 4, 1: 4}
    assert await broker.commit("first", -1, {0: 2}) == "ok"
    assert await broker.committed() == {0: 2, 1: 4}
    assert await alone(broker, "third") == generation + 2
    assert await broker.committed() == {0: 2, 1: 4}


async def test_a_member_that_is_silent_for_its_session_is_out(broker: AnyBroker):
    generation = await both(broker)
    began_s = broker.now_s()

    await rebalancing(broker, "first", generation)
    silent_s = broker.now_s() - began_s
    await broker.join("first")

    assert SESSION_S - 1 < silent_s < SESSION_S + 10
    assert await broker.joined("first") == generation + 1
    assert await broker.heartbeat("second", generation) == "unknown_member"
    assert await broker.commit("second", generation, {0: 1}) == "unknown_member"


async def test_a_commit_is_a_sign_of_life_too(broker: AnyBroker):
    generation = await both(broker)
    until_s = broker.now_s() + 1.5 * SESSION_S

    async def is_late() -> bool:
        assert await broker.heartbeat("first", generation) == "ok"
        assert await broker.commit("second", generation, {0: 1}) == "ok"
        return broker.now_s() > until_s

    await until(broker, True, is_late)

    assert await broker.heartbeat("second", generation) == "ok"


async def test_a_member_that_does_not_join_again_in_time_is_out_though_it_lives(
    broker: AnyBroker,
):
    generation = await both(broker)
    await broker.join("third")
    await rebalancing(broker, "first", generation)
    began_s = broker.now_s()
    await broker.join("first")

    await until(broker, "unknown_member", lambda: broker.heartbeat("second", generation))
    waited_s = broker.now_s() - began_s

    assert REBALANCE_S - 1 < waited_s < SESSION_S
    assert [await broker.joined(name) for name in ("first", "third")] == [generation + 1] * 2


async def test_a_stable_group_is_disturbed_by_its_leader_alone(broker: AnyBroker):
    generation = await both(broker)

    await broker.join("second")
    assert await broker.joined("second") == generation
    assert await broker.heartbeat("first", generation) == "ok"

    await broker.join("first")
    await rebalancing(broker, "second", generation)
    await broker.join("second")
    assert [await broker.joined(name) for name in ("first", "second")] == [generation + 1] * 2
