"""Verbs for refused records."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from stream.settings import Settings
from stream.verbs.options import WrongUse, setting_options


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at refused records, and send them again once the fault is mended."""


def letter_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options that say which dead letters are meant; the function gets `wanted`."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> None:
        from stream.redrive.verbs import Wanted

        names = ("reason", "topic", "since", "limit")
        function(*args, wanted=Wanted(**{name: options.pop(name) for name in names}), **options)

    command: Callable[..., None] = wrapped
    for option in (
        click.option("--limit", type=click.IntRange(1), help="Most letters; default all."),
        click.option("--since", metavar="AGE|TIME", help="Written since: 90m, 2h, 3d, 2026-01-31."),
        click.option(
            "--topic",
            type=click.Choice(["user-events", "items"]),
            help="Refused there; default both.",
        ),
        click.option("--reason", metavar="TEXT", help="Refused for a reason with this text in it."),
    ):
        command = option(command)
    return command


@dead_letters.command("list")
@letter_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("bootstrap", "prefix", "group")
def dead_letters_list(settings: Settings, wanted: Any, as_json: bool) -> None:
    """Count dead letters by reason; with --limit, list that many, newest first."""
    from stream.redrive.verbs import list_letters

    list_letters(settings, wanted, as_json)


@dead_letters.command("show")
@click.argument("position", metavar="PARTITION:OFFSET")
@click.option("--raw", is_flag=True, help="Print nothing but the bytes of the value.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("bootstrap", "prefix", "group")
def dead_letters_show(settings: Settings, position: str, raw: bool, as_json: bool) -> None:
    """Print one dead letter: headers, key and value. `list --limit` names positions."""
    from stream.redrive.verbs import show_letter

    partition, _, offset = position.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise WrongUse(f"wanted PARTITION:OFFSET such as 0:17, got {position!r}")
    if raw and as_json:
        raise WrongUse("--raw and --json exclude each other")
    show_letter(settings, (int(partition), int(offset)), raw, as_json)


@dead_letters.command("redrive")
@letter_options
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Send without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; needs --yes to send.")
@setting_options("bootstrap", "prefix", "group", "replication_factor")
def dead_letters_redrive(settings: Settings, wanted: Any, **options: bool) -> None:
    """Send refused records again to where they were refused, each once, to be judged anew.

    May be run again at any time, also after a crash: what was sent is not sent twice.
    """
    from stream.redrive.verbs import redrive_letters

    redrive_letters(settings, wanted, **options)
