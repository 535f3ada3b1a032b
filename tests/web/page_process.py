"""Runs `driftline page` as a process, and speaks to it as a browser would."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
from engine import COMMAND, Engine, environment

from stream.events import Item, encode

TITLES = {
    "jazz": ["Kind of Blue", "A Love Supreme", "Mingus Ah Um", "Time Out", "Blue Train"],
    "hiking": [
        "The Ridge at Dawn",
        "Packing Light",
        "Alpine Huts",
        "Coastal Paths",
        "Maps by Hand",
    ],
    "cooking": ["Slow Bread", "Six Sauces", "Pickles", "Handmade Pasta", "Ramen at Home"],
    "chess": ["Rook Endings", "Blitz Habits", "Pawn Chains", "Zugzwang", "Knight Moves"],
}
CATALOGUE = [
    Item(f"{category}-{number}", 1, title=title, categories=[category])
    for category, titles in TITLES.items()
    for number, title in enumerate(titles)
]


class PageProcess:
    """A page of an engine's topics."""

    def __init__(self, engine: Engine, *options: str) -> None:
        where = ["--bootstrap", engine.bootstrap, "--prefix", engine.prefix, "--port", "0"]
        self.log_path = Path(engine.home) / "page.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "page", *where, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(),
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.log()

    def log(self) -> str:
        """The end of what it wrote."""
        return self.log_path.read_text(errors="replace")[-4000:]

    def memory_bytes(self) -> int:
        """What it holds in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        code = self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def fill(engine: Engine) -> None:
    """A catalogue, and a past in which each category's items follow one another."""
    for item in CATALOGUE:
        engine.producer.send(engine.topic("items"), key=item.item_id.encode(), value=encode(item))
    now_ms = int(time.time() * 1000)
    number = 0
    records = []
    for user in range(24):
        category = list(TITLES)[user % len(TITLES)]
        for step in range(4):
            number += 1
            at_ms = now_ms - 3_600_000 + number * 1000
            taken = f"{category}-{(user + step) % 5}"
            records.append(click(f"past-{user}", number, at_ms, taken))
    engine.send(records)


def click(user: str, number: int, at_ms: int, item: str, **fields: Any) -> tuple[bytes, bytes]:
    """Key and value of a click."""
    body = {
        "event_id": f"test-{number:08d}",
        "type": "click",
        "event_time": at_ms,
        "user_id": user,
        "item_id": item,
        **fields,
    }
    return user.encode(), json.dumps(body).encode()


async def wait_ready(session: aiohttp.ClientSession, page: PageProcess) -> None:
    """Until the page has read the topics."""
    deadline = time.monotonic() + 30
    while True:
        async with session.get(page.url + "healthz") as answer:
            if answer.status == 200:
                return
        assert time.monotonic() < deadline, page.log()
        await asyncio.sleep(0.05)


async def told(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """(kind, message) of a stream of server-sent events."""
    kind = ""
    async for line in answer.content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            kind = text[7:]
        elif text.startswith("data: "):
            yield kind, json.loads(text[6:])


async def first(answer: aiohttp.ClientResponse, kinds: Iterable[str], wanted: Any) -> Any:
    """The first message of these kinds that fulfils a condition; fails after 20 s."""
    async with asyncio.timeout(20):
        async for kind, message in told(answer):
            if kind in kinds and wanted(message):
                return message
    raise AssertionError("the stream ended")
