"""What the verbs have in common: settings as options, errors without a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from export.errors import DriftlineError
from stream.settings import Settings, load_settings


class WrongUse(click.ClickException):
    """Wrong use or a missing device: exit code 2."""

    exit_code = 2


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options --config and one for each named setting; the function gets `settings`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapped(config: Path | None, **options: Any) -> None:
            chosen = {name: options.pop(name) for name in names}
            with reported():
                function(load_settings(config, chosen), **options)

        command: Callable[..., None] = wrapped
        for name in reversed(names):
            default = msgspec.to_builtins(getattr(Settings(), name))
            command = click.option(
                "--" + name.replace("_", "-"), name, help=f"Setting {name}; default {default}."
            )(command)
        config_help = "TOML file of settings; DRIFTLINE_* variables and options override it."
        return click.option("--config", type=click.Path(path_type=Path), help=config_help)(command)

    return decorate


class reported:  # noqa: N801 - reads as a statement: with reported()
    """Errors that Driftline raises on purpose end with their message and exit code 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DriftlineError):
            raise WrongUse(str(error)) from error
