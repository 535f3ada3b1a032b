"""Whatever arrives on user-events or items is refused once, and the next good event is served."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine import Engine, Worker, event, wait_until
from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.partitioner import murmur2
from kafka_cluster import Broker

from export.statistics import CHAIN_DEPTH

PARTITIONS = 8
NOW = 1_700_000_000_000
MEGABYTE = 1_000_000
YEAR_1, YEAR_9999 = -62_135_596_800_000, 253_402_300_799_000
MAX_WORKER_BYTES = 700 * 2**20

Record = tuple[bytes | None, bytes | None]


def body(user: str, **fields: object) -> bytes:
    """A rating with some fields replaced; those that are None are left out."""
    whole = json.loads(event(user, 0, item_id="item-1")) | fields
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


def raw(user: str, field: str, text: str) -> bytes:
    """A rating with a field whose JSON is written as it is."""
    return body(user, **{field: "@"}).replace(b'"@"', text.encode("utf-8", "surrogatepass"))


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


#: What a record is -> its key and value, for the user whose visit comes next.
BAD_EVENTS: dict[str, Callable[[str], Record]] = {
    "invalid UTF-8": lambda u: (u.encode(), body(u, item_id="x").replace(b'"x"', b'"\xff\xfe"')),
    "half a surrogate": lambda u: (u.encode(), raw(u, "item_id", '"\\ud800"')),
    "not JSON": lambda u: (u.encode(), b"hello"),
    "empty": lambda u: (u.encode(), b""),
    "zeros": lambda u: (u.encode(), bytes(1000)),
    "a list": lambda u: (u.encode(), b"[]"),
    "cut off": lambda u: (u.encode(), body(u)[:-5]),
    "two objects": lambda u: (u.encode(), body(u) * 2),
    "time as text": lambda u: (u.encode(), body(u, event_time="now")),
    "time as a fraction": lambda u: (u.encode(), body(u, event_time=NOW + 0.5)),
    "item as number": lambda u: (u.encode(), body(u, item_id=7)),
    "value as text": lambda u: (u.encode(), body(u, value="5")),
    "null user": lambda u: (u.encode(), raw(u, "user_id", "null")),
    "no event id": lambda u: (u.encode(), body(u, event_id=None)),
    "no type": lambda u: (u.encode(), body(u, type=None)),
    "no time": lambda u: (u.encode(), body(u, event_time=None)),
    "no user": lambda u: (u.encode(), body(u, user_id=None)),
    "no item": lambda u: (u.encode(), body(u, item_id=None)),
    "null key": lambda u: (None, body(u)),
    "null value": lambda u: (u.encode(), None),
    "type with a space": lambda u: (u.encode(), body(u, type="a click")),
    "type in capitals": lambda u: (u.encode(), body(u, type="CLICK")),
    "type with a line end": lambda u: (u.encode(), body(u, type="click\n")),
    "empty type": lambda u: (u.encode(), body(u, type="")),
    "long type": lambda u: (u.encode(), body(u, type="a" * 65)),
    "1 MB of text": lambda u: (u.encode(), body(u, query="x" * MEGABYTE)),
    "1 MB of something": lambda u: (u.encode(), b"\x00\xff" * (MEGABYTE // 2)),
    "1 MB of type": lambda u: (u.encode(), body(u, type="x" * MEGABYTE)),
    "a key of 1 MB": lambda _: (b"k" * (MEGABYTE + 40_000), None),
    "a long wrong schema": lambda u: (u.encode(), body(u, schema="x" * 60_000)),
    "deep nesting": lambda u: (u.encode(), nested(500_000).encode()),
    "deep nesting inside": lambda u: (u.encode(), raw(u, "context", nested(30_000))),
    "deep nesting unread": lambda u: (u.encode(), raw(u, "unread", nested(30_000))),
    "NaN": lambda u: (u.encode(), raw(u, "value", "NaN")),
    "infinity": lambda u: (u.encode(), raw(u, "value", "-Infinity")),
    "beyond a double": lambda u: (u.encode(), raw(u, "value", "1e999")),
    "beyond what rows keep": lambda u: (u.encode(), raw(u, "value", "1e39")),
    "the year 1": lambda u: (u.encode(), body(u, event_time=YEAR_1)),
    "the year 9999": lambda u: (u.encode(), body(u, event_time=YEAR_9999)),
    "after all years": lambda u: (u.encode(), body(u, event_time=10**30)),
    "a time of 5000 digits": lambda u: (u.encode(), raw(u, "event_time", "1" * 5000)),
    "a long user": lambda u: (b"u" * 10_000, body("u" * 10_000)),
    "a long item": lambda u: (u.encode(), body(u, item_id="i" * 10_000)),
    "a long event id": lambda u: (u.encode(), body(u, event_id="e" * 10_000)),
    "portion of 2": lambda u: (u.encode(), body(u, portion=2)),
    "201 items": lambda u: (u.encode(), body(u, items=[{"item_id": "i"}] * 201)),
    "a bad tenant": lambda u: (u.encode(), body(u, tenant="../x")),
    "a control event": lambda u: (
        u.encode(),
        body(u, schema="driftline.control/1", type="user_export", item_id=None),
    ),
}


def item(name: str, **fields: object) -> bytes:
    return json.dumps({"item_id": name, "version": 1} | fields).encode()


BAD_ITEMS: dict[str, Record] = {
    "invalid UTF-8": (b"a", item("a", title="x").replace(b'"x"', b'"\xff"')),
    "not JSON": (b"a", b"hello"),
    "empty": (b"a", b""),
    "a list": (b"a", b"[]"),
    "version as text": (b"a", item("a", version="1")),
    "no version": (b"a", b'{"item_id": "a"}'),
    "no id": (b"a", b'{"version": 1}'),
    "another key": (b"another", item("a")),
    "1 MB of text": (b"a", item("a", text="x" * MEGABYTE)),
    "a key of 1 MB": (b"k" * (MEGABYTE + 40_000), b"x"),
    "long text": (b"a", item("a", text="x" * 20_001)),
    "deep nesting": (b"a", nested(300_000).encode()),
    "deep nesting inside": (b"a", item("a", media="@").replace(b'"@"', nested(9000).encode())),
    "NaN": (b"a", item("a", price="@").replace(b'"@"', b"NaN")),
    "infinity": (b"a", item("a", price="@").replace(b'"@"', b"Infinity")),
    "the year 1": (b"a", item("a", publish_time=YEAR_1)),
    "a long id": (b"i" * 10_000, item("i" * 10_000)),
    "33 categories": (b"a", item("a", categories=["c"] * 33)),
    "a bad tenant": (b"a", item("a", tenant="A B")),
}


@pytest.fixture
def producer(kafka: Broker) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, max_request_size=4 * MEGABYTE)
    yield producer
    producer.close()


def partition_of(user: str) -> int:
    return (murmur2(user.encode()) & 0x7FFFFFFF) % PARTITIONS


def start_with_items(engine: Engine) -> Worker:
    """A worker that knows three items, so that a visit can be answered."""
    engine.send((b"first", event("first", n, item_id=f"item-{n}")) for n in range(3))
    worker = engine.worker().start()
    engine.wait_until_all_is_done()
    return worker


def dead_letters(engine: Engine) -> list[dict[str, str]]:
    return [
        {name: value.decode() for name, value in record.headers}
        for record in engine.read("dead-letters")
    ]


def users_with_lists(engine: Engine) -> set[str]:
    return {record.key.decode() for record in engine.read("recommendations")}


def test_bad_user_events_are_dead_letters_once_and_the_next_visit_is_served(
    engine: Engine, producer: KafkaProducer
) -> None:
    worker = start_with_items(engine)
    topic = engine.topic("user-events")

    wanted = Counter()
    for number, (what, make) in enumerate(BAD_EVENTS.items()):
        user = f"after {what}"
        key, value = make(user)
        at = partition_of(user)
        sent = producer.send(topic, key=key, value=value, partition=at).get(30)
        wanted[topic, str(at), str(sent.offset)] += 1
        visit = event(user, 1000 + number, "visit")
        producer.send(topic, key=user.encode(), value=visit, partition=at).get(30)
    engine.wait_until_all_is_done()

    letters = dead_letters(engine)
    assert Counter((x["topic"], x["partition"], x["offset"]) for x in letters) == wanted
    assert all(letter["reason"] for letter in letters)
    assert {f"after {what}" for what in BAD_EVENTS} <= users_with_lists(engine)
    engine.wait_for_snapshot()
    assert worker.stop() == 0
    code, report = engine.verify_fold(worker)
    assert code == 0, report


def test_bad_items_are_dead_letters_once_even_after_a_restart(
    engine: Engine, producer: KafkaProducer
) -> None:
    worker = start_with_items(engine)
    topic = engine.topic("items")

    wanted = Counter()
    for number, (key, value) in enumerate(BAD_ITEMS.values()):
        sent = producer.send(topic, key=key, value=value).get(30)
        wanted[topic, "0", str(sent.offset)] += 1
        good = f"good-{number}"
        producer.send(topic, key=good.encode(), value=item(good)).get(30)
    wait_until(lambda: len(dead_letters(engine)) >= len(wanted), engine.logs)
    worker.kill()
    worker.start()
    last = producer.send(topic, key=b"last", value=b"not an item").get(30)
    wanted[topic, "0", str(last.offset)] += 1
    engine.send([(b"visitor", event("visitor", 1, "visit"))])

    wait_until(lambda: len(dead_letters(engine)) >= len(wanted), engine.logs)
    engine.wait_until_all_is_done()
    letters = dead_letters(engine)
    assert Counter((x["topic"], x["partition"], x["offset"]) for x in letters) == wanted
    assert all(letter["reason"] for letter in letters)
    assert "visitor" in users_with_lists(engine)


def test_items_without_a_key_are_refused_by_the_broker(
    engine: Engine, producer: KafkaProducer
) -> None:
    with pytest.raises(KafkaError):
        producer.send(engine.topic("items"), value=item("a")).get(30)


def test_an_event_under_a_wrong_key_is_sent_on_and_folded_once(
    engine: Engine, producer: KafkaProducer
) -> None:
    worker = start_with_items(engine)
    topic = engine.topic("user-events")

    wrong = [
        (b"another", body("alice", event_id="wrong-key"), None),
        (b"\xff\xfe", body("alice", event_id="no-text-key"), None),
        (b"bob", body("bob", event_id="wrong-partition"), (partition_of("bob") + 1) % PARTITIONS),
    ]
    for key, value, partition in wrong:
        producer.send(topic, key=key, value=value, partition=partition).get(30)
    wait_until(lambda: {"alice", "bob"} <= users_with_lists(engine), engine.logs)
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()

    assert not dead_letters(engine)
    assert worker.stop() == 0
    code, report = engine.verify_fold(worker)
    assert code == 0, report
    assert report["checks"]["wrong keys"]["checked"] == len(wrong)
    assert report["checks"]["deltas"]["checked"] == 3 + len(wrong)


def assert_serves_and_holds(engine: Engine, worker: Worker) -> None:
    """A visitor gets a list, the worker ends in order, and all is the fold of the log."""
    engine.send([(b"visitor", event("visitor", 20, "visit"))])
    engine.wait_until_all_is_done()
    assert "visitor" in users_with_lists(engine)
    assert worker.stop() == 0
    code, report = engine.verify_fold(worker)
    assert code == 0, report


def send_in_a_transaction(bootstrap: str, records: list[tuple[str, bytes, bytes]]) -> None:
    """(topic, key, value) of each, as a producer of another language or framework sends them."""
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, transactional_id=f"{records[0][0]}-producer", acks="all"
    )
    producer.init_transactions()
    producer.begin_transaction()
    for topic, key, value in records:
        at = partition_of(key.decode()) if topic.endswith("user-events") else 0
        producer.send(topic, value, key, partition=at)
    producer.commit_transaction()
    producer.close()


def test_transactions_stop_nobody_and_their_ends_are_dead_letters(
    engine: Engine, kafka: Broker
) -> None:
    worker = start_with_items(engine)
    clicks = [
        (engine.topic("user-events"), b"ada", event("ada", 10 + n, item_id=f"item-{n}"))
        for n in range(2)
    ]
    send_in_a_transaction(
        kafka.bootstrap, [*clicks, (engine.topic("items"), b"late", item("late"))]
    )
    engine.wait_until_all_is_done()  # the end of the transaction too

    assert "ada" in users_with_lists(engine)
    (letter,) = dead_letters(engine)
    assert "let producers send without transactions" in letter["reason"]
    engine.wait_for_snapshot()
    assert worker.stop() == 0
    worker.start()  # `items` ends with an end of a transaction
    assert_serves_and_holds(engine, worker)


class Latin1(str):
    """A header's name that is sent in another encoding than Kafka's clients expect."""

    def encode(self, *_: object) -> bytes:
        return super().encode("latin-1")


def test_header_names_and_times_of_items_that_no_parser_expects_stop_nobody(
    engine: Engine, producer: KafkaProducer
) -> None:
    worker = start_with_items(engine)
    headers = [(Latin1("caf\u00e9"), b"v")]
    late = item("late", publish_time=10**30)
    producer.send(engine.topic("items"), key=b"late", value=late, headers=headers).get(30)
    for number, user in enumerate(["ada", "bob", "ada"]):
        click = event(user, 10 + number, item_id=f"item-{number}")
        at = partition_of(user)
        topic = engine.topic("user-events")
        producer.send(topic, click, user.encode(), headers=headers, partition=at).get(30)
    engine.wait_until_all_is_done()

    assert {"ada", "bob"} <= users_with_lists(engine)
    assert not dead_letters(engine)
    engine.wait_for_snapshot()
    worker.kill()
    worker.start()
    assert_serves_and_holds(engine, worker)


def test_a_list_of_the_longest_ids_and_reasons_can_be_sent(engine: Engine) -> None:
    length = 146  # the most that settings take beside the default `max_request_bytes`
    hubs = [longest_id(number) for number in range(CHAIN_DEPTH)]
    walks = [[*reversed(hubs), longest_id(number)] for number in range(10, 10 + length)]
    numbers = itertools.count()

    def walk(user: str, items: list[str]) -> list[Record]:
        return [(user.encode(), event(user, next(numbers), item_id=name)) for name in items]

    worker = engine.worker().start(
        DRIFTLINE_LIST_LENGTH=str(length),
        DRIFTLINE_NEIGHBOURS=str(2 * length),
        DRIFTLINE_POPULARITY_SHARE="0.01",
    )
    engine.send(record for user, items in enumerate(walks) for record in walk(f"u{user}", items))
    engine.wait_until_all_is_done()
    visitor = "\x01" * 256
    engine.send([*walk(visitor, hubs), (visitor.encode(), event(visitor, 9999, "visit"))])
    engine.wait_until_all_is_done()

    lists = [r for r in engine.read("recommendations") if r.key == visitor.encode()]
    newest = json.loads(lists[-1].value)
    assert len(newest["items"]) == length
    assert all(len(entry["reason"]["items"]) == 2 for entry in newest["items"])
    assert len(lists[-1].value) > 650_000
    assert worker.stop() == 0


def longest_id(number: int) -> str:
    """Of characters that JSON writes in six, but for the number."""
    return f"{number:06}".rjust(256, "\x01")


@pytest.mark.slow
def test_many_large_refused_records_do_not_stay_in_memory(
    engine: Engine, producer: KafkaProducer
) -> None:
    worker = start_with_items(engine)
    visitor = b"visitor"

    for number in range(150):
        value = bytes([number]) * MEGABYTE
        producer.send(engine.topic("user-events"), key=visitor, value=value)
        producer.send(engine.topic("items"), key=b"item", value=value)
    producer.flush()
    producer.send(engine.topic("user-events"), key=visitor, value=event("visitor", 1, "visit"))
    producer.flush()
    engine.wait_until_all_is_done()
    wait_until(lambda: engine.ends(engine.topic("dead-letters"))[0] == 300, engine.logs)

    assert "visitor" in users_with_lists(engine)
    assert resident_bytes(worker) < MAX_WORKER_BYTES


def resident_bytes(worker: Worker) -> int:
    """The most memory that the process has had."""
    assert worker.process is not None
    status = Path(f"/proc/{worker.process.pid}/status")
    if not status.exists():
        pytest.skip("the system does not tell the memory of a process in /proc")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
