"""Refused records are counted, shown, and sent again: each once, whatever dies in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from engine import COMMAND, Engine, driftline, environment, event

from stream.dead_letters import DeadLetter
from stream.partitioner import partitions_of
from stream.redrive import turn
from stream.settings import Settings

PARTITIONS = 8


def verb(engine: Engine, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """One of `driftline dead-letters`, run to its end."""
    where = ["--bootstrap", engine.bootstrap, "--prefix", engine.prefix]
    done = driftline("dead-letters", *arguments, *where, **settings)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def told(engine: Engine, *arguments: object) -> dict[str, Any]:
    """What a verb says as JSON."""
    done = verb(engine, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def put_letters(engine: Engine, letters: list[DeadLetter]) -> None:
    """Write dead letters as a worker does."""
    for x in letters:
        engine.producer.send(
            engine.topic("dead-letters"),
            key=x.kept_key(),
            value=x.kept_value(),
            headers=x.headers(),
        )
    engine.producer.flush()


def keyless(engine: Engine, count: int) -> list[DeadLetter]:
    """Letters of ratings that came without a key, of as many users."""
    topic = engine.topic("user-events")
    return [
        DeadLetter("no key", topic, n % PARTITIONS, n, None, event(f"u{n}", n, item_id="i"))
        for n in range(count)
    ]


def redriven(engine: Engine) -> list[Any]:
    """Records of user-events that were sent again."""
    return [record for record in engine.read("user-events") if record.headers]


def assert_each_once(engine: Engine, letters: list[DeadLetter]) -> None:
    found = Counter(dict(record.headers)["redriven-from"].decode() for record in redriven(engine))
    assert found == Counter(f"{x.topic}/{x.partition}/{x.offset}" for x in letters)


def test_after_the_fault_is_mended_a_redriven_event_counts_once(engine: Engine) -> None:
    engine.send((b"first", event("first", n, item_id=f"item-{n}")) for n in range(3))
    users = [f"u{n}" for n in range(20)]
    engine.send((None, event(user, 10 + n, item_id="item-1")) for n, user in enumerate(users))
    engine.send([(b"ada", b"rubbish"), (b"ada", None), (b"ada", b"x" * 70_000)])
    worker = engine.worker().start()
    engine.wait_until_all_is_done()

    first = told(engine, "redrive", "--yes")
    engine.wait_until_all_is_done()
    again = told(engine, "redrive", "--yes", "--reason", "no key")

    assert (first["records"], len(first["not_redrivable"])) == (21, 2)
    assert (again["records"], again["sent_before"]) == (0, 20)
    sent = [record for record in redriven(engine) if record.value != b"rubbish"]
    assert sorted(record.key.decode() for record in sent) == sorted(users)
    assert [r.partition for r in sent] == partitions_of([r.key for r in sent], PARTITIONS)
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()
    assert worker.stop() == 0
    code, report = engine.verify_fold(worker)
    assert code == 0, report
    assert report["checks"]["deltas"]["checked"] == 3 + len(users)


def test_a_redrive_that_is_killed_while_sending_or_before_its_mark_goes_on_where_it_was(
    engine: Engine,
) -> None:
    letters = keyless(engine, 520)  # two sendings
    put_letters(engine, letters + letters[:9])  # a worker's crash makes two letters of a record

    for crash in ("send:300", "end:1"):
        done = verb(engine, "redrive", "--yes", DRIFTLINE_TEST_CRASH=crash)
        assert done.returncode == -signal.SIGKILL, done.stderr
    ended = told(engine, "redrive", "--yes")
    again = told(engine, "redrive", "--yes")

    assert_each_once(engine, letters)
    assert ended["records"] < len(letters)
    assert (again["records"], again["sent_before"]) == (0, len(letters))


def test_of_two_redrives_at_once_each_record_is_sent_once(engine: Engine) -> None:
    letters = keyless(engine, 700)
    put_letters(engine, letters)
    where = ["--bootstrap", engine.bootstrap, "--prefix", engine.prefix]
    command = [*COMMAND, "dead-letters", "redrive", "--yes", *where]

    both = [
        subprocess.Popen(command, env=environment(), stdout=-1, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in both]

    assert all("Traceback" not in text for text in said)
    assert 0 in [process.returncode for process in both], said
    assert_each_once(engine, letters)


#: Redrives, and stands still when its first sending is not put down yet.
STOPPING = """
import os, signal, sys
from stream.redrive.account import Account
from stream.redrive.letters import LetterFilter
from stream.redrive.redrive import redrive
from stream.settings import Settings

ends = iter(["end"])

def stop(step):
    if step == "end" and next(ends, None):
        os.kill(os.getpid(), signal.SIGSTOP)

redrive(Account(Settings(bootstrap=sys.argv[1], prefix=sys.argv[2])), LetterFilter(), None, print,
        stop)
"""


def test_one_that_stood_still_while_another_redrove_sends_nothing_more(engine: Engine) -> None:
    letters = keyless(engine, 700)  # two sendings
    put_letters(engine, letters)
    command = [sys.executable, "-c", STOPPING, engine.bootstrap, engine.prefix]

    stopped = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), stopped.communicate(timeout=60)[1]
        other = told(engine, "redrive", "--yes")
        stopped.send_signal(signal.SIGCONT)
        said = stopped.communicate(timeout=60)[1]
    finally:
        stopped.kill()

    assert (other["records"], other["sent_before"]) == (200, 500)
    assert "NotOurTurnError" in said
    assert_each_once(engine, letters)


def test_a_turn_comes_though_the_groups_answer_to_the_first_joining_is_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_letters(engine, keyless(engine, 1))
    monkeypatch.setattr(turn, "_LOOKS_MS", (1, 1000))  # it ends before the answer is there
    settings = Settings(bootstrap=engine.bootstrap, prefix=engine.prefix)

    with turn.Turn(settings, print) as mine:
        mine.check()


def test_list_counts_by_reason_or_names_the_newest_and_show_prints_one(engine: Engine) -> None:
    topic = engine.topic("user-events")
    cut = DeadLetter("70000 bytes: at most 65536 are taken", topic, 0, 5, b"ada", b"x" * 70_000)
    put_letters(engine, [*keyless(engine, 3), cut])

    counted = told(engine, "list")
    newest = told(engine, "list", "--limit", 2)["letters"]
    shown = verb(engine, "show", newest[0]["position"]).stdout
    raw = verb(engine, "show", "0:0", "--raw").stdout
    whole = told(engine, "show", "0:0")

    assert [(c["reason"], c["letters"]) for c in counted["reasons"]] == [
        ("no key", 3),
        ("# bytes: at most # are taken", 1),
    ]
    assert [x["position"] for x in newest] == ["0:3", "0:2"]
    assert "the first of 70,000" in shown and "cannot be sent again" in shown
    assert raw.encode() == event("u0", 0, item_id="i")
    assert (whole["value"], whole["is_cut"]) == (raw, False)
    assert "    3" in verb(engine, "list", "--topic", "user-events", "--since", "1h").stdout
    assert verb(engine, "list", "--topic", "items").stdout == "no dead letters\n"
    assert engine.topic("redrive-log") not in engine.consumer.topics(), "to look makes no topic"


def test_items_are_sent_again_under_their_own_id(engine: Engine) -> None:
    topic = engine.topic("items")
    value = b'{"item_id": "lamp", "version": 1}'
    put_letters(engine, [DeadLetter("the key is not the item_id", topic, 0, 4, b"desk", value)])

    said = verb(engine, "redrive", "--yes", "--topic", "items").stdout

    (record,) = engine.read("items")
    assert (record.key, record.value) == (b"lamp", value)
    assert record.headers == [("redriven-from", f"{topic}/0/4".encode())]
    assert f"sent 1 records to {topic}" in said


def test_a_dry_run_and_a_missing_yes_send_nothing(engine: Engine) -> None:
    letters = keyless(engine, 4)
    put_letters(engine, letters)

    dry = told(engine, "redrive", "--dry-run", "--limit", 3)
    asked = verb(engine, "redrive")

    assert (dry["records"], dry["done"]) == (3, False)
    assert asked.returncode == 2 and "--yes" in asked.stderr
    assert redriven(engine) == []


def test_wrong_use_is_named(engine: Engine) -> None:
    for arguments, words in (
        (["show", "17"], "PARTITION:OFFSET"),
        (["show", "0:17"], "holds none"),
        (["list", "--since", "soon"], "90m"),
    ):
        done = verb(engine, *arguments)

        assert done.returncode == 2
        assert words in done.stderr


def test_a_record_that_is_no_mark_stops_a_redrive_before_it_sends(engine: Engine) -> None:
    put_letters(engine, keyless(engine, 1))
    assert told(engine, "redrive", "--yes", "--reason", "another")["records"] == 0
    engine.producer.send(engine.topic("redrive-log"), b"who wrote this?").get(30)

    done = verb(engine, "redrive", "--yes")

    assert done.returncode == 2
    assert "wanted a mark" in done.stderr
    assert redriven(engine) == []
