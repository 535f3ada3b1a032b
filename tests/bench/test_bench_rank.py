"""The benchmark of ranking: it says what it needs, and its shares are of the whole."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from stream.bench.rank import RankReport, RankRun
from stream.cli import main


def test_without_a_release_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bench", "rank", "--registry", str(tmp_path)])

    assert done.exit_code == 2
    assert "driftline train" in done.output


def test_the_table_has_a_line_for_each_batch_size() -> None:
    runs = [
        RankRun(size, 1.0, 1000.0 * size, 2.0, 500.0 * size, 0.5, {"graph": 0.5, "messages": 0.5})
        for size in (1, 16)
    ]

    table = RankReport("driftline/1", 100, 1000, 1, runs).as_table()

    assert len(table.splitlines()) == 4
    assert "graph 50%, messages 50%" in table
