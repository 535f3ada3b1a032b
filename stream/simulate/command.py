"""The verb `simulate`: many seeds, or every mutant until a seed catches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click
from tqdm import tqdm

from stream.guards import ALL_GUARDS
from stream.simulate.mutants import MUTANTS, Mutant, in_force
from stream.simulate.world import Outcome, simulate

#: Seeds that have failed once, or catch a mutant that few others do: always run first.
SEEDS_FILE = Path(__file__).with_name("seeds.txt")


def run(seeds: int, first: int, mutate: str | None, as_json: bool) -> int:
    """Do what the verb is asked; returns the exit code."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is a part of the seed
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        command = [sys.executable, "-c", "from stream.cli import main; main()", *sys.argv[1:]]
        return subprocess.run(command, env=environment).returncode
    # tasks of dead hosts are never resumed: that is what a death is
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if mutate is None:
        return run_seeds(range(first, first + seeds), as_json)
    wanted = [m for m in MUTANTS if mutate in ("all", m.name)]
    if not wanted:
        names = ", ".join(mutant.name for mutant in MUTANTS)
        raise click.UsageError(f"--mutate: wanted all or one of {names}; got {mutate!r}")
    return run_mutants(wanted, seeds, first, as_json)


def run_seeds(seeds: Iterable[int], as_json: bool) -> int:
    """Run the right code; 1 if a seed finds something wrong."""
    outcomes = [
        simulate(seed)
        for seed in tqdm(list(seeds), desc="seeds", unit="seed", disable=None, leave=False)
    ]
    failed = [outcome for outcome in outcomes if not outcome.holds]
    if as_json:
        click.echo(json.dumps([asdict(outcome) for outcome in outcomes]))
        return int(bool(failed))
    for outcome in failed:
        click.echo(f"seed {outcome.seed} finds:")
        for finding in outcome.findings[:5]:
            click.echo(f"  {finding[:300]}")
    faults: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome.faults)
    struck = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
    events = sum(outcome.events for outcome in outcomes)
    hours = sum(outcome.virtual_s for outcome in outcomes) / 3600
    click.echo(
        f"{len(outcomes)} seeds, {events:,} events in {hours:.1f} simulated hours; {struck}: "
        f"{len(failed)} seeds failed"
    )
    return int(bool(failed))


def run_mutants(mutants: list[Mutant], seeds: int, first: int, as_json: bool) -> int:
    """Run each mutant until a seed finds something wrong; 1 if one survives them all."""
    caught = {}
    if not as_json:
        click.echo(f"{'mutant':24}{'caught by':>10}  what it does; first finding")
    for mutant in tqdm(mutants, desc="mutants", disable=None, leave=False):
        caught[mutant.name] = outcome = first_catch(mutant, seeds, first)
        if not as_json:
            by = "SURVIVES" if outcome is None else f"seed {outcome.seed}"
            finding = "" if outcome is None else f"; {outcome.findings[0][:90]}"
            click.echo(f"{mutant.name:24}{by:>10}  {mutant.what}{finding}")
    if as_json:
        click.echo(json.dumps({name: o and asdict(o) for name, o in caught.items()}))
    return int(None in caught.values())


def first_catch(mutant: Mutant, seeds: int, first: int) -> Outcome | None:
    """The first run in which this mutant is found out; the kept seeds come first."""
    kept = kept_seeds()
    unfit = set(kept.get("open", ()))  # they fail by themselves
    order = [
        *kept.get(mutant.name, []),
        *(s for s in range(first, first + seeds) if s not in unfit),
    ]
    for seed in order:
        with in_force(mutant) as guards:
            outcome = simulate(seed, guards)
        if not outcome.holds and (
            mutant.without is None or simulate(seed, ALL_GUARDS.without(mutant.without)).holds
        ):
            return outcome
    return None


def kept_seeds() -> dict[str, list[int]]:
    """The seeds of SEEDS_FILE by what they are kept for: `failed`, `open`, or a mutant's name."""
    kept: dict[str, list[int]] = {}
    for line in SEEDS_FILE.read_text().splitlines():
        words = line.split("#")[0].split()
        if words:
            kept.setdefault(words[0], []).extend(map(int, words[1:]))
    return kept
