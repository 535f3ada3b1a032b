"""The AsyncAPI document describes the topics that there are, with the schemas that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stream.dead_letters import DeadLetter
from stream.schemas import MESSAGES
from stream.settings import Settings
from stream.topics import required_topics, state_changelog

PATH = Path(__file__).parents[2] / "deploy" / "asyncapi.yaml"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return yaml.safe_load(PATH.read_text())


def references(node: Any) -> list[str]:
    """All $ref of a document."""
    if isinstance(node, list):
        return [found for part in node for found in references(part)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"]] if "$ref" in node else []
    return own + [found for part in node.values() for found in references(part)]


def test_it_is_of_version_3_and_every_operation_is_on_a_channel(document):
    assert document["asyncapi"] == "3.0.0"
    assert {operation["action"] for operation in document["operations"].values()} == {
        "send",
        "receive",
    }
    assert all("channel" in operation for operation in document["operations"].values())


def test_its_channels_are_the_topics_without_the_changelog(document):
    settings = Settings()
    topics = {spec.name for spec in required_topics(settings)} - {state_changelog(settings)}

    assert {channel["address"] for channel in document["channels"].values()} == topics


def test_every_reference_leads_somewhere(document):
    for reference in references(document):
        if not reference.startswith("#/"):
            assert (PATH.parent / reference).exists(), reference
            continue
        node: Any = document
        for name in reference.removeprefix("#/").split("/"):
            assert name in node, reference
            node = node[name]


def test_every_message_on_a_topic_has_its_published_schema(document):
    files = {f"./schemas/{name}.v1.json" for name in MESSAGES if name != "manifest"}

    assert {r for r in references(document) if not r.startswith("#/")} == files


def test_the_headers_of_dead_letters_are_those_that_are_sent(document):
    headers = document["components"]["messages"]["DeadLetter"]["headers"]
    sent = {name for name, _ in DeadLetter("", "", 0, 0, None, None).headers()}

    assert set(headers["properties"]) == set(headers["required"]) == sent
