"""Generate the JSON Schemas of the messages from their types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from export.manifest import Manifest
from stream.events import (
    ControlEvent,
    Decision,
    Interests,
    Item,
    MergePart,
    MergeRequest,
    Recommendation,
    ReleaseStage,
    Trending,
    UserEvent,
)

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Messages about a user name at least one of these.
_OWNER = [{"required": ["user_id"]}, {"required": ["anonymous_id"]}]
MESSAGES: dict[str, type[msgspec.Struct]] = {
    "event": UserEvent,
    "control": ControlEvent,
    "merge-request": MergeRequest,
    "merge-part": MergePart,
    "item": Item,
    "recommendation": Recommendation,
    "trending": Trending,
    "interests": Interests,
    "decision": Decision,
    "model-release": ReleaseStage,
    "manifest": Manifest,
}
_OWNED = frozenset({"event", "recommendation", "interests"})


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one message."""
    kind = MESSAGES[name]
    (root,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    body = definitions.pop(kind.__name__, root)
    document = {
        "$schema": _DIALECT,
        "$id": f"urn:driftline:{name}:1",
        **body,
        "$defs": definitions,
    }
    if name in _OWNED:
        document["anyOf"] = _OWNER
    return document


def all_schemas() -> dict[str, dict[str, Any]]:
    """Name -> schema, of every message."""
    return {name: schema(name) for name in MESSAGES}


def schema_text(name: str) -> str:
    """One schema as it is checked in."""
    return msgspec.json.format(msgspec.json.encode(schema(name)), indent=1).decode() + "\n"


def write_schemas(folder: Path) -> None:
    """Write `<name>.v1.json` for every message."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in MESSAGES:
        (folder / f"{name}.v1.json").write_text(schema_text(name))
