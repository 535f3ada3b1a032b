"""What the README says is true: its messages, its commands, its tables, and its programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import threading
import tomllib
from pathlib import Path

import click
import jsonschema
import msgspec
import pytest
from engine import Engine, event, wait_until
from generate import README, ROOT, generated
from kafka_cluster import Broker

from stream.cli import main
from stream.schemas import schema
from stream.settings import load_settings

TEXT = README.read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The code blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Words of every `driftline` command in the shell blocks."""
    lines = [line for block in blocks("sh", text) for line in block.splitlines()]
    called = [part for line in lines for part in line.split("&&")]
    words = [part.split() for part in called]
    return [w for w in words if w and w[0].rsplit("/", 1)[-1] == "driftline"]


def test_topics_settings_and_files_in_it_are_those_of_the_code():
    assert generated(TEXT) == TEXT, "run `python tests/readme/generate.py`"


@pytest.mark.parametrize("block", blocks("json"), ids=lambda b: json.loads(b)["schema"])
def test_every_example_message_validates(block):
    message = json.loads(block)
    name = message["schema"].removeprefix("driftline.").removesuffix("/1")

    jsonschema.validate(message, schema(name))
    assert set(message) <= set(schema(name)["properties"])


@pytest.mark.parametrize("words", [*commands(TEXT), *commands(CONTRIBUTING)], ids=" ".join)
def test_every_command_has_the_verb_and_the_options_it_is_called_with(words):
    command: click.Command | None = main
    context = click.Context(main)
    arguments = words[1:]
    while isinstance(command, click.Group):
        command = command.get_command(context, arguments.pop(0))
    assert command is not None, words

    known = {name for option in command.params for name in option.opts}
    assert {word for word in arguments if word.startswith("--")} <= known


def test_the_settings_file_in_it_is_taken(tmp_path):
    (block,) = blocks("toml")
    path = tmp_path / "driftline.toml"
    path.write_text(block)

    role = load_settings(path, {}, {}).role_of("watch")

    assert msgspec.to_builtins(role) == {"role": "positive", "weight": 2.0, "refreshes": True}


def test_ci_installs_and_tests_as_it_says():
    _, tests = (block for block in blocks("sh") if "venv .venv" in block)
    ci = (ROOT / ".ci" / "run").read_text()
    extras = re.search(r"-e '(\.\[.*?\])'", tests)

    assert extras is not None
    assert f"--editable '{extras[1]}'" in ci
    assert f"-e '{extras[1]}'" in CONTRIBUTING
    assert tests.strip().endswith("&& .venv/bin/pytest")
    assert re.search(r"^pytest --require-broker\b", ci, re.MULTILINE)


def test_all_dependencies_are_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["train"], *extras["demo"]]
    section = TEXT[TEXT.index("## Dependencies") : TEXT.index("## What it is not")]

    for requirement in wanted:
        assert re.split(r"[<>=\[]", requirement)[0] in section


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT + CONTRIBUTING)

    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture
def engine(kafka: Broker, prefix: str, tmp_path: Path):
    engine = Engine(kafka.bootstrap, prefix, tmp_path)
    yield engine
    engine.close()


def program(block: str, engine: Engine) -> list[str]:
    """A program of the README, at the test's broker and topics."""
    assert "127.0.0.1:9092" in block
    code = block.replace("127.0.0.1:9092", engine.bootstrap)
    for name in ("user-events", "recommendations"):
        code = code.replace(f'"{name}"', f'"{engine.topic(name)}"')
    return [sys.executable, "-c", textwrap.dedent(code)]


@pytest.mark.broker
def test_clicks_sent_as_it_says_are_answered_with_lists_read_as_it_says(engine):
    sender, reader = blocks("python")
    engine.worker().start()
    engine.send([(b"zoe", event("zoe", 1, "click", item_id="blue-train"))])
    engine.wait_until_all_is_done()
    said: list[str] = []
    reading = subprocess.Popen(program(reader, engine), stdout=subprocess.PIPE, text=True)
    assert reading.stdout is not None
    listener = threading.Thread(target=lambda: said.extend(reading.stdout), daemon=True)
    listener.start()

    try:
        sent = subprocess.run(program(sender, engine), capture_output=True, text=True, timeout=60)
        assert sent.returncode == 0, sent.stderr
        wait_until(lambda: any(line.startswith("ada [") for line in said), lambda: f"ada {said}")
    finally:
        reading.kill()
        reading.wait()
        listener.join()

    ada = [line for line in said if line.startswith("ada [")][-1]
    assert "kind-of-blue" not in ada
    assert "a-love-supreme" in ada and "mingus-ah-um" in ada
