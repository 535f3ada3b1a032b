"""Say what was refused, and what was sent again: for people and for machines."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from export.errors import DriftlineError
from stream.redrive.account import Plan
from stream.redrive.letters import Letter, headers_of, letter_of
from stream.redrive.marks import Ledger
from stream.settings import Settings

_MAX_ROWS = 40
_MAX_REASON = 90
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class SinceError(DriftlineError):
    """A beginning that is neither an age nor a time."""


@dataclass(slots=True)
class ReasonCount:
    """Letters of one topic and one reason; numbers within a reason do not tell reasons apart."""

    topic: str
    reason: str
    letters: int = 0
    sent_again: int = 0
    not_redrivable: int = 0
    newest_ms: int = 0


def since_ms(text: str | None, now_ms: int) -> int:
    """The time that `90m`, `2h`, `3d` ago or a date means, in ms; 0 for none. Raises SinceError."""
    if text is None:
        return 0
    age = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if age:
        delta = timedelta(**{_UNITS[age[2]]: int(age[1])})
        return max(now_ms - int(delta.total_seconds() * 1000), 0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SinceError(
            f"--since: wanted an age (90m, 2h, 3d) or a time (2026-01-31T12:00), got {text!r}"
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def count_reasons(letters: Iterable[Letter], ledger: Ledger) -> list[ReasonCount]:
    """The reasons by topic, those with most letters first."""
    counts: dict[tuple[str, str], ReasonCount] = {}
    for letter in letters:
        reason = re.sub(r"\d+", "#", letter.reason)
        found = counts.setdefault((letter.topic, reason), ReasonCount(letter.topic, reason))
        found.letters += 1
        found.sent_again += letter.origin in ledger.sent
        found.not_redrivable += bool(letter.obstacle)
        found.newest_ms = max(found.newest_ms, letter.written_ms)
    return sorted(counts.values(), key=lambda count: (-count.letters, count.topic, count.reason))


def reasons_table(counts: list[ReasonCount]) -> str:
    """One line a reason, and one for all."""
    if not counts:
        return "no dead letters"
    lines = ["letters  sent again  cannot be  newest (UTC)         topic, reason"]
    lines += [
        f"{c.letters:7,}  {c.sent_again:10,}  {c.not_redrivable:9,}  {_time(c.newest_ms)}  "
        f"{c.topic}: {_short(c.reason)}"
        for c in counts[:_MAX_ROWS]
    ]
    if len(counts) > _MAX_ROWS:
        rest = sum(c.letters for c in counts[_MAX_ROWS:])
        lines.append(f"{rest:7,}  of {len(counts) - _MAX_ROWS:,} other reasons: see --json")
    lines.append(f"{sum(c.letters for c in counts):7,}  in all")
    return "\n".join(lines)


def letter_line(letter: Letter, ledger: Ledger) -> str:
    """A letter on one line."""
    note = "sent again" if letter.origin in ledger.sent else letter.obstacle
    return (
        f"{letter.position}  {_time(letter.written_ms)}  {letter.origin}  {_short(letter.reason)}"
        + (f"  [{note}]" if note else "")
    )


def letter_fields(letter: Letter, ledger: Ledger) -> dict[str, Any]:
    """A letter for machines."""
    return {
        "position": letter.position,
        "at": letter.written_ms,
        "reason": letter.reason,
        "from": letter.origin,
        "value_bytes": letter.value_bytes,
        "sent_again": letter.origin in ledger.sent,
        "obstacle": letter.obstacle or None,
    }


def record_text(record: Any, settings: Settings) -> str:
    """A whole record of dead-letters: headers, key, and the value, laid out where it is JSON."""
    letter = letter_of(record, settings)
    lines = [f"{record.partition}:{record.offset}  {_time(record.timestamp)}"]
    lines += [f"{name}: {text}" for name, text in headers_of(record.headers).items()]
    lines.append(f"key: {_shown(record.key)}")
    if letter is None:
        lines.append("no worker wrote it: it is no dead letter")
    elif letter.obstacle:
        lines.append(f"cannot be sent again: {letter.obstacle}")
    value = record.value
    if value is None:
        return "\n".join([*lines, "value: none"])
    size = letter.value_bytes if letter else len(value)
    cut = f", the first of {size:,}" if size > len(value) else ""
    return "\n".join([*lines, f"value: {len(value):,} bytes{cut}", _laid_out(value)])


def record_fields(record: Any, settings: Settings) -> dict[str, Any]:
    """A whole record of dead-letters for machines: bytes in base64, and as text beside it."""
    letter = letter_of(record, settings)
    return {
        "position": f"{record.partition}:{record.offset}",
        "at": record.timestamp,
        "headers": headers_of(record.headers),
        "key": _shown(record.key),
        "key_base64": _base64(record.key),
        "value": _shown(record.value),
        "value_base64": _base64(record.value),
        "is_cut": letter is not None and letter.value_bytes > len(record.value or b""),
        "obstacle": letter.obstacle or None if letter else "is no dead letter",
    }


def plan_text(plan: Plan, verb: str) -> str:
    """What is or was sent again, and what was not."""
    by_topic: dict[str, int] = {}
    for letter in plan.letters:
        by_topic[letter.topic] = by_topic.get(letter.topic, 0) + 1
    lines = [f"{verb} {count:,} records to {topic}" for topic, count in sorted(by_topic.items())]
    lines = lines or [f"{verb} nothing"]
    if plan.sent_before:
        lines.append(f"  {plan.sent_before:,} were sent again before")
    lines += [f"  {n:,} cannot be sent again: each {why}" for why, n in plan.obstacles.items()]
    return "\n".join(lines)


def plan_fields(plan: Plan, is_done: bool) -> dict[str, Any]:
    """The same for machines."""
    return {
        "done": is_done,
        "records": len(plan.letters),
        "sent_before": plan.sent_before,
        "not_redrivable": dict(plan.obstacles),
    }


def _laid_out(value: bytes) -> str:
    try:
        return msgspec.json.format(value).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return value.decode(errors="backslashreplace")


def _shown(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="backslashreplace")


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 1] + "…"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
