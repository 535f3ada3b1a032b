"""Rows on disk are the fold of the changelog up to the offset beside them, whatever befell it."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import faust
import pytest
from engine import wait_until
from faust.types import TP

from stream.kafka.marks import TopicMarks
from stream.kafka.own_rows import source_row
from stream.kafka.restore import begin_from_disk
from stream.kafka.row_store import FLUSH_S, DamagedTableError, ReservedKeyError, RowStore
from stream.kafka.table import RowTable
from stream.kafka.wiring import faust_settings
from stream.verify.rows import rows_on_disk


def table_in(folder: Path, **options: object) -> RowTable:
    """A table whose databases are in a folder `tables` there."""
    app = faust.App("rows", datadir=str(folder), **faust_settings())
    app.conf.tabledir = folder / "tables"
    app.conf.tabledir.mkdir(exist_ok=True)
    return app.Table("rows", **options)


@pytest.fixture
def make_table(tmp_path: Path) -> Iterator[object]:
    """Opens the same table again and again, as restarts do; at most one at a time."""
    opened: list[RowTable] = []

    def make(topics: TopicMarks | None = None) -> RowTable:
        close()
        opened.append(table_in(tmp_path, partitions=2, topics=topics))
        return opened[-1]

    def close() -> None:
        if opened:
            asyncio.run(opened[-1].data.stop())

    yield make
    close()


def test_rows_are_read_in_the_order_asked_for_and_none_deletes(make_table):
    table = make_table()

    table.write(1, [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")], 7)
    table.write(1, [(b"b", None)], 8)

    assert table.get_many(1, [b"c", b"b", b"x", b"a", b"c"]) == [b"3", None, None, b"1", b"3"]
    assert table.get_many(0, [b"a"]) == [None]
    assert list(table.iter_rows(1)) == [(b"a", b"1"), (b"c", b"3")]


def test_rows_offset_and_watermark_survive_a_restart_together(make_table):
    table = make_table()
    changelog = TP(table.changelog_topic_name, 1)
    assert (table.persisted_offset(changelog), table.source_watermark(1)) == (None, None)

    table.write(1, [(b"a", b"1"), source_row(41)], 9)
    table = make_table()

    assert table.get_many(1, [b"a"]) == [b"1"]
    assert table.persisted_offset(changelog) == 9
    assert table.source_watermark(1) == 41


@pytest.mark.parametrize("last", [[], [source_row(41, TopicMarks(changelog=1))]])
def test_rows_of_a_changelog_that_was_deleted_are_set_aside_even_if_not_all_were_there(
    make_table, tmp_path, last
):
    table = make_table(TopicMarks(changelog=1))
    table.write(0, [(b"a", b"1"), *last], 9)
    table = make_table(TopicMarks(changelog=1))
    assert table.get_many(0, [b"a"]) == [b"1"]

    table = make_table(TopicMarks(changelog=2))

    assert table.get_many(0, [b"a"]) == [None]
    assert table.persisted_offset(TP(table.changelog_topic_name, 0)) is None
    assert (tmp_path / "tables" / "rows-0.db.damaged").exists()
    assert list(table.iter_rows(0)) == []


def test_a_row_under_the_tables_own_key_is_refused(make_table):
    with pytest.raises(ReservedKeyError):
        make_table().write(0, [(b"__faust\0offset__", b"5")], 1)


def test_a_partition_that_is_found_damaged_while_reading_is_set_aside_at_the_next_start(
    make_table, tmp_path
):
    table = make_table()
    table.write(0, [(b"k%d" % n, os.urandom(200)) for n in range(2_000)], 1)
    table.data.db(0).flush()
    table = make_table()
    table.data.db(0)  # opening it finds nothing
    (file, *_) = (tmp_path / "tables").glob("rows-0.db/*.sst")
    content = bytearray(file.read_bytes())
    content[: len(content) // 2] = os.urandom(len(content) // 2)
    file.write_bytes(content)

    with pytest.raises(DamagedTableError):
        table.get_many(0, [b"k%d" % n for n in range(2_000)])
    table = make_table()

    assert table.get_many(0, [b"k1"]) == [None]
    assert (tmp_path / "tables" / "rows-0.db.damaged").exists()


def test_going_through_the_rows_ends_with_an_error_at_a_block_that_cannot_be_read(
    make_table, tmp_path
):
    table = make_table()
    table.write(0, [(b"k%04d" % n, os.urandom(200)) for n in range(2_000)], 1)
    table = make_table()
    table.data.db(0)
    (file,) = (tmp_path / "tables").glob("rows-0.db/*.sst")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    read = []
    with pytest.raises(DamagedTableError):
        for key, _ in table.iter_rows(0):
            read.append(key)
    with pytest.raises(DamagedTableError):
        next(table.iter_rows(0, after=read[-1]), None)

    assert 0 < len(read) < 2_000
    with pytest.raises(Exception, match="Corruption"):
        rows_on_disk(tmp_path / "tables" / "rows-0.db")


def test_damage_that_shows_in_writing_is_set_aside_at_the_next_start(make_table, tmp_path):
    table = make_table()
    for number in range(2):  # two files, to be merged
        table.write(0, [(b"k%d" % n, os.urandom(200)) for n in range(2_000)], number)
        table.data.db(0).flush()
    table = make_table()
    table.data.db(0)
    file = min((tmp_path / "tables").glob("rows-0.db/*.sst"))
    content = bytearray(file.read_bytes())
    content[: len(content) // 2] = os.urandom(len(content) // 2)
    file.write_bytes(content)

    table.data.db(0).compact_range(None, None)
    with pytest.raises(DamagedTableError):
        table.write(0, [(b"a", b"1")], 2)
    table = make_table()

    assert table.persisted_offset(TP(table.changelog_topic_name, 0)) is None
    assert (tmp_path / "tables" / "rows-0.db.damaged").exists()


def test_a_database_that_another_process_holds_is_not_taken_for_damaged(make_table, tmp_path):
    table = make_table()
    table.write(0, [(b"a", b"1")], 1)

    with pytest.raises(Exception, match="lock"):
        table.data._open_for_partition(0)

    assert not list(tmp_path.rglob("*.damaged"))


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import faust
from stream.kafka.wiring import faust_settings

app = faust.App("rows", datadir=sys.argv[1], **faust_settings())
app.conf.tabledir = Path(sys.argv[1]) / "tables"
app.conf.tabledir.mkdir()
table = app.Table("rows", partitions=1, write_buffer_bytes=128 * 1024)
for number in range(120):
    table.write(0, [(b"k%d" % number, os.urandom(4_000))], number)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_whatever_a_killed_worker_leaves_and_bad_disks_take_is_a_beginning_or_is_set_aside(
    make_table, tmp_path
):
    killed = tmp_path / "killed"
    killed.mkdir()
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(killed)], check=False, timeout=60)
    left = killed / "tables" / "rows-0.db"
    here = tmp_path / "tables" / "rows-0.db"
    harms = [(None, 0)]
    for file in (path for path in left.iterdir() if path.suffix != ".old"):
        size = file.stat().st_size
        cuts = range(0, size, 8 if file.name.startswith("MANIFEST") else max(size // 3, 1))
        harms += [(file.name, -1), *((file.name, cut) for cut in cuts)]
    begun = set()

    for name, cut in harms:
        table = make_table()
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(left, here)
        if name is not None and cut < 0:
            (here / name).unlink()
        elif name is not None:
            os.truncate(here / name, cut)
        try:
            rows = {key for key, _ in table.iter_rows(0)}
            applied = table.persisted_offset(TP(table.changelog_topic_name, 0))
        except DamagedTableError:
            continue  # the next start sets it aside
        assert rows == {b"k%d" % n for n in range(-1 if applied is None else applied + 1)}, (
            f"{name} cut to {cut} bytes"
        )
        begun.add(applied)

    assert max(begun, key=lambda applied: applied or 0) >= 50, "most of it is on disk"


def test_a_recovery_goes_on_from_the_disk_and_not_from_what_was_there_before(make_table):
    table = make_table()
    tp = TP(table.changelog_topic_name, 0)
    tables, recovery = table.app.tables, table.app.tables.recovery
    tables._changelogs[tp.topic] = table
    recovery.standby_tps.add(tp)

    table.write(0, [(b"a", b"1")], 6)
    begin_from_disk(tables, tp, end=7)
    assert recovery.standby_offsets[tp] == 6

    table.drop(0, "for a test")
    begin_from_disk(tables, tp, end=7)
    assert recovery.standby_offsets[tp] == -1

    table.write(0, [(b"a", b"1")], 8)
    begin_from_disk(tables, tp, end=7)
    assert recovery.standby_offsets[tp] == -1
    assert table.get_many(0, [b"a"]) == [None]


def test_nothing_is_put_behind_rows_that_could_not_be_written(make_table, tmp_path):
    table = make_table()
    tp = TP(table.changelog_topic_name, 0)
    table.write(0, [(b"a", b"1")], 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))  # a full disk
    try:
        with pytest.raises(Exception, match="File too large"):
            table.data.revoke_partitions(table, {tp})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.raises(DamagedTableError, match="in memory"):
        table.write(0, [(b"b", b"2")], 1)

    assert table.persisted_offset(tp) is None
    table.write(0, [(b"a", b"1"), (b"b", b"2")], 1)
    assert dict(table.iter_rows(0)) == {b"a": b"1", b"b": b"2"}


def test_the_first_rows_of_many_partitions_do_not_fill_the_memory_of_all(tmp_path):
    table = table_in(tmp_path, partitions=64, write_buffer_bytes=8 * 1024**2)

    for number in range(3):
        for partition in range(64):
            table.write(partition, [(b"k%d" % number, os.urandom(4000))], number)

    assert not list(tmp_path.rglob("*.sst"))
    asyncio.run(table.data.stop())
    assert len(list(tmp_path.rglob("*.sst"))) == 64


async def test_rows_of_a_quiet_partition_come_to_disk_in_time(tmp_path, monkeypatch):
    async def at_once(self: object, interval: float, **_: object) -> AsyncIterator[float]:
        assert interval == FLUSH_S
        yield interval

    monkeypatch.setattr(RowStore, "itertimer", at_once)
    table = table_in(tmp_path, partitions=1)
    table.write(0, [(b"a", b"1")], 0)

    async with table.data:
        await asyncio.to_thread(wait_until, lambda: list(tmp_path.rglob("*.sst")), "a file")
