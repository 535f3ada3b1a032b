"""What the README says is true: its messages, its commands, its tables, and its programs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tomllib
from typing import Any

import click
import jsonschema
import msgspec
import pytest
from engine import COMMAND, Engine, driftline, environment
from generate import README, ROOT, generated
from kafka_cluster import JVM, kafka_home

from stream.cli import main
from stream.events import decode_user_event
from stream.partitioner import partitions_of
from stream.schemas import schema
from stream.settings import Settings, load_settings

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


def test_every_folder_of_tests_is_explained_to_contributors():
    folders = [f.name for f in (ROOT / "tests").iterdir() if any(f.glob("test_*.py"))]

    assert [name for name in folders if f"| `tests/{name}` |" not in CONTRIBUTING] == []


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT + CONTRIBUTING)

    assert [link for link in links if not (ROOT / link).exists()] == []


def assert_well_placed(engine: Engine, keys: list[bytes]) -> None:
    """Records of these keys lie on user-events where a worker looks for them, and nothing else."""
    records = engine.read("user-events")
    assert sorted(record.key for record in records) == sorted(keys)
    wanted = partitions_of([record.key for record in records], Settings().partitions)
    assert [record.partition for record in records] == wanted


KEYS = [f"user-{number}".encode() for number in range(40)]


@pytest.mark.broker
def test_confluent_set_up_as_it_says_puts_records_where_they_must_lie(engine):
    pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed (extra dev)")
    (block,) = (block for block in blocks("python") if "confluent_kafka" in block)
    names: dict[str, Any] = {}

    exec(block.replace("127.0.0.1:9092", engine.bootstrap), names)
    for key in KEYS:
        names["producer"].produce(engine.topic("user-events"), key=key, value=b"{}")
    assert names["producer"].flush(30) == 0

    assert_well_placed(engine, KEYS)


@pytest.mark.broker
def test_kcat_called_as_it_says_puts_an_event_where_it_must_lie(engine):
    if shutil.which("kcat") is None:
        pytest.skip("kcat is not installed (Debian: kcat)")
    (block,) = (block for block in blocks("sh") if "kcat" in block)
    here = block.replace("127.0.0.1:9092", engine.bootstrap)
    here = here.replace("user-events", engine.topic("user-events"))

    for user in ("ada", "bob", "cyd"):
        command = here.replace("-k ada", f"-k {user}").replace('"ada"', f'"{user}"')
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    assert_well_placed(engine, [b"ada", b"bob", b"cyd"])
    for record in engine.read("user-events"):
        assert decode_user_event(record.value).owner() == record.key.decode()


@pytest.mark.broker
def test_java_set_up_as_it_says_puts_records_where_they_must_lie(engine, tmp_path):
    libs = kafka_home() / "libs"
    if shutil.which("java") is None or not any(libs.glob("kafka-tools*.jar")):
        pytest.skip(f"there is no java, or no jars of Kafka in {libs}")
    (block,) = blocks("properties")
    properties = tmp_path / "producer.properties"
    properties.write_text(block.replace("127.0.0.1:9092", engine.bootstrap))

    done = subprocess.run(
        [
            *("java", *JVM, "-cp", f"{libs}/*", "org.apache.kafka.tools.ConsoleProducer"),
            *("--bootstrap-server", engine.bootstrap, "--topic", engine.topic("user-events")),
            *("--command-config", properties, "--reader-property", "parse.key=true"),
        ],
        input="".join(f"{key.decode()}\t{{}}\n" for key in KEYS),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert_well_placed(engine, KEYS)


def steps(text: str) -> list[str]:
    """The first words of the lines that tell of a step and its seconds."""
    return re.findall(r"^(\w+) +\d+\.\d s  ", text, re.MULTILINE)


def test_the_demo_prints_what_it_says(tmp_path):
    pytest.importorskip("noida_db", reason="the embedded broker is not installed (extra demo)")
    (block,) = (block for block in blocks("text") if "noida-db" in block)
    process = subprocess.Popen(
        [*COMMAND, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(TMPDIR=str(tmp_path)),
    )
    assert process.stdout is not None

    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("Users act"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert steps(said) == steps(block), said
    assert re.search(r"^  http://127\.0\.0\.1:\d+/$", said, re.MULTILINE)


@pytest.mark.broker
def test_the_doctor_looks_at_what_it_says(engine):
    (block,) = (block for block in blocks("text") if "partitioner" in block)

    done = driftline("doctor", *engine.options)

    named, found = (
        [line.split()[1] for line in text.splitlines()] for text in (block, done.stdout)
    )
    assert found == named
