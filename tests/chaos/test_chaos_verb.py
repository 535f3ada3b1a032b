"""The verb `chaos`: faults strike and are survived, controls are found out, wrong use is told."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
from engine import COMMAND, driftline, environment, wait_until
from kafka_cluster import kafka_home

from stream.chaos.faults import FAULTS, Fault, Scene
from stream.chaos.report import ChaosReport, Control, Injected
from stream.chaos.run import ChaosPlan, run_chaos
from stream.chaos.traffic import number_of, records
from stream.chaos.workers import WorkerProcess

#: One of each that takes no more than seconds.
SHORT_FAULTS = [
    "kill",
    "step-ack",
    "rows-late",
    "duplicates",
    "disorder",
    "partitioner",
    "producer-hours",
    "producer-days",
    "wishes",
]


@pytest.fixture(scope="module")
def libs_home(request: pytest.FixtureRequest) -> Path:
    """Where Kafka's jars are; this verb starts brokers of its own from them."""
    home = kafka_home()
    if not any((home / "libs").glob("kafka_*.jar")):
        if request.config.getoption("--require-broker"):
            pytest.fail(f"--require-broker, and {home}/libs holds no Kafka jars", pytrace=False)
        pytest.skip(f"{home}/libs holds no Kafka jars (KAFKA_HOME)")
    return home


def chaos(libs_home: Path, *arguments: object, patience_s: float) -> tuple[int, dict]:
    options = ["--kafka-home", libs_home, *arguments, "--json"]
    done = driftline("chaos", *options, patience_s=patience_s)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_short_run_survives_its_faults_and_finds_broken_guards_out(libs_home: Path) -> None:
    code, report = chaos(
        libs_home,
        *("--faults", ",".join(SHORT_FAULTS), "--each", 1, "--workers", 1),
        *("--break-guard", "watermark,lateness,changelog-fence", "--seed", 3),
        patience_s=300,
    )

    assert code == 0, json.dumps(report, indent=1)
    assert {fault["name"]: fault["struck"] for fault in report["faults"]} == dict.fromkeys(
        SHORT_FAULTS, 1
    )
    verdict = report["verdict"]
    assert verdict["records"] > verdict["events"] > 500
    assert verdict["users"] > 100
    assert verdict["lost"] == verdict["applied_twice"] == verdict["stale_writes"] == 0
    assert report["longest_s"] > 0
    watermark, lateness, fence = report["controls"]
    assert (watermark["guard"], lateness["guard"]) == ("watermark", "lateness")
    assert watermark["applied_twice"] > 0
    assert lateness["applied_twice"] + lateness["wrong"] > 0
    assert fence["guard"] == "changelog-fence"
    assert fence["wrong"] > 0


def test_when_its_minutes_are_over_it_judges_what_has_struck_and_says_that_it_was_too_little(
    libs_home: Path,
) -> None:
    options = ("--faults", "kill", "--each", 2, "--workers", 1, "--break-guard", "none")

    code, report = chaos(libs_home, *options, "--minutes", 0, patience_s=200)

    assert code == 1
    assert not report["holds"]
    assert [(fault["struck"], fault["wanted"]) for fault in report["faults"]] == [(0, 2)]
    assert report["verdict"]["events"] > 0
    assert not report["verdict"]["findings"]


def test_a_fault_that_cannot_be_done_is_told_and_what_was_sent_before_is_judged(
    libs_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(scene: Scene) -> bool:
        raise ZeroDivisionError(f"after {scene.sender.acknowledged} events")

    monkeypatch.setitem(FAULTS, "impossible", Fault("impossible", "it cannot be done", fail))
    told: list[str] = []
    plan = ChaosPlan(faults="impossible", guards="none", workers=1, kafka_home=libs_home)

    report = run_chaos(plan, told.append)

    assert not report.holds
    assert "ZeroDivisionError" in report.stuck
    assert any("in fail" in line for line in told)
    assert report.verdict.events > 0
    assert not report.verdict.findings


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 3])
def test_brokers_and_disks_fail_and_nothing_is_lost(libs_home: Path, nodes: int) -> None:
    faults = (
        "broker-kill,broker-pause,brokers-all,wipe,bit-flip,truncate,remove,disk-full,zombie,clock,"
        "changelog"
    )

    code, report = chaos(
        libs_home,
        *("--faults", faults, "--each", 1, "--nodes", nodes, "--break-guard", "none"),
        patience_s=900,
    )

    assert code == 0, json.dumps(report, indent=1)
    skipped = {fault["name"] for fault in report["faults"] if fault["skipped"]}
    assert skipped == ({"brokers-all"} if nodes == 1 else set())


def test_ctrl_c_ends_all_processes_and_removes_the_files(libs_home: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "chaos", "--kafka-home", str(libs_home), "--faults", "kill"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(TMPDIR=str(tmp_path))
    )
    wait_until(lambda: list(tmp_path.glob("driftline-chaos-*/engine/*.log")), "workers start")

    process.send_signal(signal.SIGINT)

    assert process.wait(60) == 1
    assert not list(tmp_path.iterdir())
    wait_until(lambda: not processes_under(tmp_path), "all processes have ended", 10)


def processes_under(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder, or below it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str((path / "cwd").readlink()).startswith(str(folder)):
                found.append((path / "cmdline").read_text())
        except OSError:  # it has ended, or is not ours to look at
            continue
    return found


def test_without_kafka_it_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    done = driftline("chaos", "--kafka-home", tmp_path)

    assert done.returncode == 2
    assert f"{tmp_path}/libs" in done.stderr
    assert "KAFKA_HOME" in done.stderr


def test_a_fault_that_there_is_not_is_named_beside_those_that_there_are() -> None:
    done = driftline("chaos", "--faults", "kill,earthquake")

    assert done.returncode == 2
    assert "got earthquake" in done.stderr
    assert "broker-kill" in done.stderr


def test_a_seed_always_sends_the_same_records_and_their_numbers_can_be_read() -> None:
    def first(seed: int) -> list[tuple[int, list[tuple[bytes, bytes]]]]:
        return [event for event, _ in zip(records(seed), range(3000), strict=False)]

    sent = first(1)

    assert sent == first(1) != first(2)
    assert all(number_of(value) == number for number, of in sent for _, value in of)
    assert sum(len(of) == 2 for _, of in sent) > 10
    assert sum(key != json.loads(value)["user_id"].encode() for key, value in whole(sent)) > 2


def whole(sent: list[tuple[int, list[tuple[bytes, bytes]]]]) -> list[tuple[bytes, bytes]]:
    """The records that are whole JSON."""
    return [record for _, of in sent for record in of if record[1].endswith(b"}")]


class EndsWhileItAnswers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()


def test_a_worker_that_ends_while_it_answers_does_not_answer(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), EndsWhileItAnswers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert WorkerProcess("w", tmp_path, server.server_port, []).batches() is None


@pytest.mark.parametrize(
    "harm",
    [
        *("lost", "applied_twice", "wrong", "lists_missing", "stale_writes", "missing_in_log"),
        "users",  # without a row on disk
    ],
)
def test_a_report_with_any_harm_does_not_hold(harm: str) -> None:
    report = ChaosReport(seed=1, nodes=1, workers=1, rate=300)
    assert report.holds

    setattr(report.verdict, harm, 1)

    assert not report.holds
    assert report.as_table().endswith("NOT survived")


def test_what_faults_have_to_tell_is_in_the_report_for_machines() -> None:
    kill = Injected("kill", "a worker killed", 1, struck=1)
    kill.notes["went on"] += 2
    report = ChaosReport(1, 1, 1, 300, faults=[kill], unexpected_ends=Counter({"1": 3}))

    (fault,) = json.loads(msgspec.json.encode(report.as_json()))["faults"]

    assert fault["notes"] == {"went on": 2}
    assert "2x went on" in report.as_table()


def test_a_fault_that_never_struck_and_a_control_that_found_nothing_do_not_hold() -> None:
    missed = ChaosReport(1, 1, 1, 300, faults=[Injected("kill", "a worker killed", 2, struck=1)])
    blind = ChaosReport(1, 1, 1, 300, controls=[Control("watermark", "step-x", 2, 9, 0, 0, 0)])

    assert not missed.holds
    assert "struck too seldom: kill 1 of 2" in missed.as_table()
    assert not blind.holds
    assert "NOT FOUND OUT" in blind.as_table()
