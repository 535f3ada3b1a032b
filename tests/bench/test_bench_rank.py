"""The benchmark of ranking: it says what it needs, and its shares are of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stream.bench.rank import RankReport, RankRun
from stream.cli import main


def test_without_a_release_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bench", "rank", "--registry", str(tmp_path)])

    assert done.exit_code == 2
    assert "driftline train" in done.output


def test_the_table_has_a_line_for_each_batch_size() -> None:
    runs = [
        RankRun(size, 1.0, 1e3 * size, 2.0, 5e2 * size, 0.5, {"graph": 0.5, "messages": 0.5}, 9, 1)
        for size in (1, 16)
    ]

    table = RankReport("driftline/1", 100, 1000, 1, runs).as_table()

    assert len(table.splitlines()) == 4
    assert "graph 50%, messages 50%" in table


@pytest.mark.slow
def test_shares_of_a_trained_releases_worker_add_up(tmp_path: Path) -> None:
    data, registry = tmp_path / "events.jsonl", tmp_path / "registry"
    lines = [
        {"user": f"u{n * 7 % 40}", "item": f"i{n * n % 101}", "time": 1_600_000_000 + 60 * n}
        for n in range(1500)
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    train = ["train", "--data", str(data), "--format", "jsonl", "--registry", str(registry)]
    trained = CliRunner().invoke(main, [*train, "--epochs", "1"])
    assert trained.exit_code == 0, trained.output

    done = CliRunner().invoke(
        main, ["bench", "rank", "--registry", str(registry), "--users", "64", "--json"]
    )

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [run["batch"] for run in report["runs"]] == [1, 16, 64]
    for run in report["runs"]:
        assert sum(run["shares"].values()) == pytest.approx(1.0)
        assert run["graph_users_per_s"] > 0 and run["worker_users_per_s"] > 0
