"""The command `driftline`: one verb for everything a user of the engine does."""

from __future__ import annotations

from importlib.util import find_spec

import click

from stream.bench.commands import bench
from stream.verbs.check import chaos, doctor, simulate, verify
from stream.verbs.engine import page, replay, schemas, topics, worker
from stream.verbs.letters import dead_letters
from stream.verbs.options import WrongUse
from stream.verbs.releases import releases
from stream.verbs.show import demo, demo_release, sample

#: Verbs of `models.cli`, and the packages that they need and a worker lacks.
_TRAINING_VERBS = ("train", "evaluate", "trainer")
_TRAINING_PACKAGES = ("torch", "transformers", "safetensors", "onnx", "onnxscript")


class Verbs(click.Group):
    """Offers the training verbs; where their packages are not installed they say so."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the alphabet's order."""
        return sorted([*super().list_commands(ctx), *_TRAINING_VERBS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A verb; one of training is looked up in `models`."""
        if cmd_name not in _TRAINING_VERBS:
            return super().get_command(ctx, cmd_name)
        missing = [name for name in _TRAINING_PACKAGES if find_spec(name) is None]
        if missing:
            return _missing(cmd_name, missing)
        from models.cli import commands

        return next((c for c in commands if c.name == cmd_name), None)


def _missing(verb: str, packages: list[str]) -> click.Command:
    """A verb that only says what it needs."""

    @click.command(verb, context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def say_so(rest: tuple[str, ...]) -> None:
        """Needs the trainer's packages."""
        raise WrongUse(
            f"`driftline {verb}` needs {', '.join(packages)}: install driftline[train,cpu]"
        )

    return say_so


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="driftline")
def main() -> None:
    """Driftline: a click in, a refreshed recommendation list out."""


for verb in (
    bench,
    topics,
    worker,
    replay,
    page,
    schemas,
    sample,
    demo,
    demo_release,
    doctor,
    verify,
    simulate,
    chaos,
    dead_letters,
    releases,
):
    main.add_command(verb)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete verbs and options.

    For bash: eval "$(driftline completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc; for fish:
    driftline completion fish > ~/.config/fish/completions/driftline.fish.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # the choices are those that click has
    click.echo(kind(main, {}, "driftline", "_DRIFTLINE_COMPLETE").source())
