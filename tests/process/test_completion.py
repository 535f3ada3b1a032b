"""Shells complete verbs and options, and machines can read what the checks of topics found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine import driftline, environment
from kafka_cluster import Broker

DRIFTLINE = Path(sys.executable).with_name("driftline")


def bash_offers(*words: str) -> list[str]:
    """What bash offers for the last of these words, asked as bash asks."""
    done = subprocess.run(
        [DRIFTLINE],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(
            COMP_WORDS=" ".join(["driftline", *words]),
            COMP_CWORD=str(len(words)),
            _DRIFTLINE_COMPLETE="bash_complete",
        ),
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_of_its_own(shell):
    done = driftline("completion", shell)

    assert done.returncode == 0, done.stderr
    assert f"_DRIFTLINE_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=done.stdout, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["do"], "doctor"),
        (["topics", "ch"], "check"),
        (["worker", "--boot"], "--bootstrap"),
        (["verify", "parity", "--sa"], "--samples"),
        (["completion", "z"], "zsh"),
        (["tra"], "trainer"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_verbs_and_options_are_offered(words, offered):
    assert offered in bash_offers(*words)


def test_an_unknown_shell_is_wrong_use():
    done = driftline("completion", "tcsh")

    assert done.returncode == 2
    assert "bash" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.broker
def test_machines_read_which_topics_differ(kafka: Broker, prefix: str):
    options = ["--bootstrap", kafka.bootstrap, "--prefix", prefix]

    missing = driftline("topics", "check", *options, "--json")
    driftline("topics", "create", *options)
    there = driftline("topics", "check", *options, "--json")
    other = driftline("topics", "check", *options, "--partitions", "4", "--json")

    assert (missing.returncode, there.returncode, other.returncode) == (2, 0, 2)
    assert f"{prefix}items: missing" in json.loads(missing.stdout)["differences"]
    assert json.loads(there.stdout) == {"ok": True, "differences": []}
    assert (
        f"{prefix}user-events: wanted 4 partitions, got 8"
        in json.loads(other.stdout)["differences"]
    )
