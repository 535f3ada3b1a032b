"""Judge an engine after its faults: the fold of the log, users that are exact, stale writes."""

from __future__ import annotations

from pathlib import Path

from stream.chaos.engine import Engine
from stream.chaos.report import Verdict
from stream.topics import state_changelog
from stream.verify.fold import fold_log, verify_fold
from stream.verify.report import Report
from stream.verify.rows import Changelog, check_rows, rows_on_disk, stands_at
from stream.verify.topics import KafkaLog
from stream.verify.users import ExpectedState

_LISTS = "newest lists"
_ROWS = "rows in the changelog"
_DISK = "rows on disk"
_OWN_KEYS = b"\x00"
#: How RocksDB's errors begin: a block is damaged, a file is missing.
_DAMAGES = ("Corruption", "IO error: No such file")


def judge(engine: Engine, acknowledged: int) -> Verdict:
    """Everything that can be told of an engine at rest whose workers have ended."""
    dirs = [worker.data_dir for worker in engine.workers if worker.data_dir.exists()]
    unread = _set_aside_unread_damage(dirs)
    report = verify_fold(engine.settings, dirs)
    checks = {check.name: check for check in report.checks}
    others = [check for check in report.checks if check.name != _LISTS]
    verdict = Verdict(
        events=acknowledged,
        users=checks[_ROWS].checked,
        lists=checks[_LISTS].checked,
        rows_on_disk=checks[_DISK].checked,
        missing_in_log=engine.missing_events(acknowledged),
        lost=sum(check.lost for check in others),
        applied_twice=sum(check.twice for check in report.checks),
        wrong=sum(check.wrong for check in report.checks),
        lists_missing=checks[_LISTS].lost,
        findings=_findings(report) + [f"{path}: damage that nothing has read" for path in unread],
    )
    log = KafkaLog(engine.settings.bootstrap)
    verdict.records = sum(log.ends(engine.events).values())
    if not checks[_ROWS].holds:
        verdict.users_not_exact = users_not_exact(engine, log)
    verdict.stale_writes, told = stale_writes(engine, log)
    verdict.findings += told
    return verdict


def users_not_exact(engine: Engine, log: KafkaLog) -> int:
    """Users whose row is missing, or not the fold of their events."""
    settings = engine.settings
    changes = state_changelog(settings)
    changelog = Changelog.of(log.read(changes, "rows"), {})
    state = fold_log(log, settings, settings.partitions).state
    fingerprint = log.fingerprint(engine.events)
    wrong = 0
    for name, user in state.users.items():
        where = (user.partition, "\x1f".join(name).encode())
        kept = {where: changelog.values[where]} if where in changelog.values else {}
        alone = ExpectedState(settings)
        alone.users[name] = user
        check, _ = check_rows(Changelog(kept, {}), alone, fingerprint, {})
        wrong += not check.holds
    return wrong


def stale_writes(engine: Engine, log: KafkaLog) -> tuple[int, list[str]]:
    """Rows that come after a newer row of their user: of a worker that wrote when it no longer
    might. The first ones are told. What the changelog has compacted away is not seen."""
    newest: dict[tuple[int, bytes], tuple[int, int]] = {}
    count = 0
    told: list[str] = []
    for record in log.read(state_changelog(engine.settings), "writes"):
        if record.key.startswith(_OWN_KEYS) or record.value is None:
            continue
        row_offset, row_seq = stands_at(record.value)
        where = (record.partition, record.key)
        applied, seq = newest.get(where, (-1, -1))
        if row_offset < applied or row_seq < seq:
            count += 1
            if len(told) < 5:
                told.append(
                    f"stale: row of {record.key!r} at {record.partition}/{record.offset} stands at "
                    f"{row_offset}, seq {row_seq}; before it stood at {applied}, seq {seq}"
                )
        newest[where] = max(applied, row_offset), max(seq, row_seq)
    return count, told


def _findings(report: Report) -> list[str]:
    return [f"{check.name}: {finding}" for check in report.checks for finding in check.told]


def _set_aside_unread_damage(data_dirs: list[Path]) -> list[Path]:
    """Databases that cannot be read as a whole get another name, so that the others are checked.

    A damaged block that no worker has read serves nobody a wrong row; the log says that of the
    others.
    """
    unread = []
    for path in [p for folder in data_dirs for p in folder.glob("*/v*/tables/*-*.db")]:
        try:
            rows_on_disk(path)
        except Exception as error:  # rocksdict raises nothing more exact
            if not str(error).startswith(_DAMAGES):
                raise
            path.rename(path.with_name(f"{path.name}.unread-damage"))
            unread.append(path)
    return unread
