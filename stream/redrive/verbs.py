"""Do what the verbs of `driftline dead-letters` ask, and print it."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click
import msgspec

from export.errors import DriftlineError
from stream.redrive import report
from stream.redrive.account import Account, plan_of
from stream.redrive.letters import LetterFilter
from stream.redrive.redrive import redrive
from stream.settings import Settings


class UnconfirmedError(DriftlineError):
    """Nobody is there to say yes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options that say which letters are meant, as they were given."""

    reason: str | None
    topic: str | None
    since: str | None
    limit: int | None

    def letters(self, settings: Settings) -> LetterFilter:
        """The filter. Raises SinceError."""
        since_ms = report.since_ms(self.since, int(time.time() * 1000))
        topic = settings.topic(self.topic) if self.topic else ""
        return LetterFilter(self.reason or "", topic, since_ms)


def list_letters(settings: Settings, wanted: Wanted, as_json: bool) -> None:
    """Print a table of reasons; with a limit, that many letters, the newest first."""
    account, letters = Account(settings), wanted.letters(settings)
    ledger = account.ledger()
    if wanted.limit is None:
        counts = report.count_reasons(account.letters(letters), ledger)
        fields = {"letters": sum(c.letters for c in counts), "reasons": [asdict(c) for c in counts]}
        click.echo(msgspec.json.encode(fields) if as_json else report.reasons_table(counts))
        return
    newest = list(deque(account.letters(letters), maxlen=wanted.limit))[::-1]
    if as_json:
        found = [report.letter_fields(letter, ledger) for letter in newest]
        click.echo(msgspec.json.encode({"letters": found}))
    else:
        lines = [report.letter_line(letter, ledger) for letter in newest]
        click.echo("\n".join(lines) or "no dead letters")


def show_letter(settings: Settings, position: tuple[int, int], raw: bool, as_json: bool) -> None:
    """Print one letter whole; `raw`: nothing but the bytes of its value."""
    record = Account(settings).record(*position)
    if raw:
        sys.stdout.buffer.write(record.value or b"")
        sys.stdout.buffer.flush()
    elif as_json:
        click.echo(msgspec.json.encode(report.record_fields(record, settings)))
    else:
        click.echo(report.record_text(record, settings))


def redrive_letters(
    settings: Settings, wanted: Wanted, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Say what would be sent again, ask, and send it."""
    account, letters = Account(settings), wanted.letters(settings)
    if dry_run or not yes:
        plan = plan_of(account.letters(letters), account.ledger(), wanted.limit)
        fields = report.plan_fields(plan, is_done=False)
        text = report.plan_text(plan, "would send" if dry_run else "to send:")
        if dry_run or not plan.letters:
            click.echo(msgspec.json.encode(fields) if as_json else text)
            return
        _ask(text, as_json)
    plan = redrive(account, letters, wanted.limit, _say, _on_step())
    fields = report.plan_fields(plan, is_done=True)
    click.echo(msgspec.json.encode(fields) if as_json else report.plan_text(plan, "sent"))


def _ask(text: str, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise UnconfirmedError(
            f"{text}\nwanted a yes before anything is sent, and nobody is there to ask: give "
            "--yes, or --dry-run to see what would be sent"
        )
    click.echo(text)
    click.confirm("Send?", abort=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _on_step() -> Callable[[str], None]:
    """Ends the process at a step, where a test asks for it."""
    from stream.app import CRASH_VARIABLE, crash_on_request

    return crash_on_request(os.environ.get(CRASH_VARIABLE, ""))
