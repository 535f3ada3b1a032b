"""Write those parts of the README that the code knows better: `python tests/readme/generate.py`.

Each stands between `<!-- NAME: generated -->` and `<!-- end -->`; a test compares.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from stream.settings import Settings
from stream.topics import required_topics

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"

#: The order in which a stranger best reads `stream/`: the way of a click; the others follow.
READING_ORDER = """
    cli worker app events topics settings agents state history catalogue requests ranker reasons
    lists interests live statistics snapshots releases shared_outputs dead_letters
""".split()  # noqa: SIM905 - it reads better than a list of strings

ABOUT_TOPICS = {
    "user-events": ("user", "clicks, visits and other events of users, in"),
    "items": ("item", "the catalogue, in; a null value deletes"),
    "recommendations": ("user", "a user's refreshed list, out; newest per key"),
    "trending": ("scenario", "the list for everybody else, out"),
    "interests": ("user", "a user's interests now and next, out"),
    "decisions": ("user", "the full record of each list: state, positions, candidates"),
    "item-statistics": ("none", "what events add to the statistics, worker to workers"),
    "model-releases": ("name/version", "the stage each release has reached"),
    "release-log": ("name", "changes of stage with reasons; who ranks with what from where on"),
    "dead-letters": ("original key", "refused records with reason, topic, partition, offset"),
    "driftline-user-state-changelog": ("user", "the users' rows, to recover from"),
}


def settings_table() -> str:
    """Name, default, meaning; meanings are the comments beside the settings."""
    source = (ROOT / "stream" / "settings.py").read_text()
    defaults = msgspec.to_builtins(Settings())
    body = source[source.index("class Settings(") :]
    lines = ["| setting | default | |", "|---|---|---|"]
    for name, default in defaults.items():
        found = re.search(rf"^    {name}: .*?  # (.+)$", body, re.MULTILINE)
        meaning = found.group(1) if found else ""
        shown = msgspec.json.encode(default).decode().replace(",", ", ")
        lines.append(f"| `{name}` | `{shown}` | {meaning} |")
    return "\n".join(lines)


def topics_table() -> str:
    """Name, key, partitions, policy, content of every topic."""
    settings = Settings()
    lines = ["| topic | key | partitions | policy | holds |", "|---|---|---|---|---|"]
    for spec in required_topics(settings):
        key, about = ABOUT_TOPICS[spec.name]
        count = "`partitions`" if spec.partitions == settings.partitions else str(spec.partitions)
        policy = spec.configs["cleanup.policy"].replace(",", ", ")
        policy = "kept" if spec.configs.get("retention.ms") == "-1" else policy
        lines.append(f"| `{spec.name}` | {key} | {count} | {policy} | {about} |")
    return "\n".join(lines)


def module_map() -> str:
    """Every file of the packages and examples with the first sentence of its docstring."""
    lines = ["```"]
    for package in ("stream", "export", "models", "examples"):
        folders = [ROOT / package, *sorted(p for p in (ROOT / package).iterdir() if p.is_dir())]
        for folder in folders:
            files = sorted(folder.glob("*.py"), key=_reading_order)
            named = [file for file in files if file.name != "__init__.py"]
            if named:
                lines.append(f"{folder.relative_to(ROOT)}/")
            lines += [f"  {file.stem:<18} {_purpose(file)}" for file in named]
    return "\n".join([*lines, "```"])


def example(name: str) -> str:
    """One of the programs in `examples/`."""
    return f"```python\n{(ROOT / 'examples' / f'{name}.py').read_text()}```"


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "topics": topics_table,
    "modules": module_map,
    "producer": functools.partial(example, "producer"),
    "consumer": functools.partial(example, "consumer"),
}


def generated(text: str) -> str:
    """The README with all generated parts as they must be."""
    for name, part in PARTS.items():
        pattern = rf"(<!-- {name}: generated -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern,
            lambda found, part=part: f"{found[1]}\n{part()}\n\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"wanted one part {name} in the README, got {count}")
    return text


def _reading_order(file: Path) -> tuple[int, str]:
    known = file.parent.name == "stream" and file.stem in READING_ORDER
    return (READING_ORDER.index(file.stem) if known else len(READING_ORDER), file.stem)


def _purpose(file: Path) -> str:
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    first = re.split(r"[.?](?:\s|$)", doc.replace("\n", " "), maxsplit=1)[0].split(": `python")[0]
    return first.strip()


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
