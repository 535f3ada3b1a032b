"""A topic is deleted and made anew: never gone on with silently, and there is a way on."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from engine import Engine, Worker, driftline, event, wait_until
from kafka import KafkaAdminClient

from stream.kafka.marks import FOREIGN_EXIT_CODE

pytestmark = pytest.mark.broker

USERS = [f"user-{number}" for number in range(12)]
CHANGELOG = "driftline-user-state-changelog"
#: Worker's look at the topics' ids, and time for it to end.
NOTICED_S = 20.0


def make_anew(engine: Engine, *names: str) -> None:
    """Delete topics, and make them as the README says."""
    admin = KafkaAdminClient(bootstrap_servers=engine.bootstrap)
    topics = [engine.topic(name) for name in names]
    admin.delete_topics(topics)
    wait_until(lambda: not set(topics) & set(admin.list_topics()), "the topics are deleted")
    admin.close()
    created = driftline("topics", "create", *engine.options[:4])
    assert created.returncode == 0, created.stderr


def send(engine: Engine, first: int, count: int) -> None:
    """Events of all users, numbered on."""
    engine.send(
        (user.encode(), event(user, number, item_id=f"item-{number % 97}"))
        for number in range(first, first + count)
        for user in [USERS[number % len(USERS)]]
    )


def user_rows(engine: Engine) -> int:
    """Rows of users on the changelog; those of the fence come with every start."""
    return sum(not record.key.startswith(b"\x00") for record in engine.read(CHANGELOG))


def started_and_done(engine: Engine) -> Worker:
    """A worker that has folded a hundred events, sent the lists and saved the statistics."""
    worker = engine.worker().start()
    send(engine, 0, 20)  # first something to list, so that every user gets a list
    engine.wait_until_all_is_done()
    send(engine, 20, 80)
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()
    return worker


def newest_seq(engine: Engine) -> dict[str, int]:
    """User -> seq of the last list on the topic, which must be the highest."""
    found: dict[str, int] = {}
    for record in engine.read("recommendations"):
        message = json.loads(record.value)
        assert message["seq"] >= found.get(message["user_id"], 0), message
        found[message["user_id"]] = message["seq"]
    return found


def assert_exact(engine: Engine, worker: Worker, *others: Worker) -> dict[str, Any]:
    """State, lists and statistics are the fold of the log that there is now; gives the report."""
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()
    worker.stop()
    code, report = engine.verify_fold(worker, *others)
    assert code == 0, json.dumps(report, indent=1)
    assert report["checks"]["rows in the changelog"]["checked"] == len(USERS)
    assert report["checks"]["counts of the snapshot"]["checked"] > 0
    return report


def test_events_of_another_topic_end_the_worker_and_after_the_way_out_all_is_exact(
    engine: Engine,
) -> None:
    worker = started_and_done(engine)
    seqs = newest_seq(engine)

    make_anew(engine, "user-events")
    send(engine, 100, 300)  # longer than the former one: no offset tells

    assert worker.wait_for_end(NOTICED_S) == FOREIGN_EXIT_CODE
    rows = user_rows(engine)
    assert worker.start().wait_for_end() == FOREIGN_EXIT_CODE
    assert "user-events is another topic" in worker.log()
    fresh = engine.worker("fresh").start()  # knows of the former topic from the changelog alone
    assert fresh.wait_for_end() == FOREIGN_EXIT_CODE
    assert "delete the changelog and item-statistics" in fresh.log()
    assert user_rows(engine) == rows

    make_anew(engine, CHANGELOG)
    assert worker.start().wait_for_end() == FOREIGN_EXIT_CODE, "old deltas would hide new ones"
    make_anew(engine, "item-statistics")
    worker.start()
    send(engine, 400, 30)

    assert_exact(engine, worker)
    assert all(seq > seqs[user] for user, seq in newest_seq(engine).items())


def test_a_lost_changelog_is_built_again_from_the_events_and_seq_goes_on(engine: Engine) -> None:
    worker = started_and_done(engine)
    worker.stop()
    seqs = newest_seq(engine)
    gone = engine.worker("gone")  # had these rows, and is not started any more
    shutil.copytree(worker.data_dir, gone.data_dir)

    make_anew(engine, CHANGELOG)
    worker.start()
    send(engine, 100, 30)

    report = assert_exact(engine, worker, gone)
    assert "changelog that was deleted" in " ".join(report["checks"]["rows on disk"]["notes"])
    assert "it is a copy of a changelog that was deleted" in worker.log_path.read_text()
    assert all(seq > seqs[user] for user, seq in newest_seq(engine).items())


def test_a_changelog_made_anew_under_a_worker_is_not_taken_for_the_whole_state(
    engine: Engine,
) -> None:
    worker = started_and_done(engine)

    make_anew(engine, CHANGELOG)
    send(engine, 100, 30)

    assert worker.wait_for_end(NOTICED_S) == FOREIGN_EXIT_CODE
    assert "the changelog was deleted and made anew while workers wrote" in worker.log()
    assert user_rows(engine), "rows of the running worker are on the new topic"
    fresh = engine.worker("fresh").start()
    assert fresh.wait_for_end() == FOREIGN_EXIT_CODE
    make_anew(engine, CHANGELOG)
    fresh.start()
    send(engine, 130, 30)

    assert_exact(engine, fresh)


def test_statistics_and_lists_go_on_where_their_topics_are_made_anew_under_a_worker(
    engine: Engine,
) -> None:
    worker = started_and_done(engine)

    make_anew(engine, "item-statistics", "recommendations")
    wait_until(
        lambda: f"{engine.topic('item-statistics')} was deleted and made anew" in worker.log(),
        "the worker notices",
    )
    send(engine, 100, 300)  # deltas of these have offsets that the former topic had too
    engine.wait_until_all_is_done()
    late = engine.worker("late").start()  # has the snapshot, and the new topic
    wait_until(late.data_dir.exists, late.log, 60)
    send(engine, 400, 30)
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()
    for of in (worker, late):
        of.stop()

    assert newest_seq(engine).keys() == set(USERS)
    _, report = engine.verify_fold(worker, late)
    counts = report["checks"]["counts of the snapshot"]
    assert counts["checked"] > 0
    assert counts["lost"] == counts["twice"] == counts["wrong"] == 0, counts
    assert "the snapshot holds 430 of 430 events" in " ".join(counts["notes"])
