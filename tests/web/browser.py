"""Drives a headless Chromium over the DevTools protocol, as far as the tests of the page need."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_S = 30.0


def program() -> str | None:
    """The browser to drive, from CHROMIUM or the path; None where there is none."""
    found = os.environ.get("CHROMIUM")
    return found or next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """One open page. `errors` and `requests` gather what its console and network said."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0

    async def listen(self) -> None:
        """Take in what the browser says, for as long as the page is open."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                answer = self._answers.pop(told["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(told)
            else:
                self._note(told["method"], told["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:2000])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(json.dumps(params["args"])[:2000])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(params["entry"])[:2000])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        answer = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        told = await asyncio.wait_for(answer, _PATIENCE_S)
        assert "error" not in told, f"{method}: {told}"
        result: dict[str, Any] = told["result"]
        return result

    async def value(self, expression: str) -> Any:
        """What an expression, or a promise, comes to in the page."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, f"{expression}: {told['exceptionDetails']}"
        return told["result"].get("value")

    async def until(self, expression: str, patience_s: float = _PATIENCE_S) -> Any:
        """The first true value of an expression; fails after the patience."""
        deadline = asyncio.get_running_loop().time() + patience_s
        while not (value := await self.value(expression)):
            if asyncio.get_running_loop().time() > deadline:
                text = await self.value("document.body.innerText")
                raise AssertionError(f"waited in vain for {expression}; the page says:\n{text}")
            await asyncio.sleep(0.02)
        return value

    async def open(self, url: str) -> None:
        """Load a page and wait for it."""
        await self.call("Page.navigate", url=url)
        await self.until(
            f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})"
        )

    async def look(
        self, width: int, height: int, scheme: str = "light", reduced_motion: bool = False
    ) -> None:
        """A window of this size, in light or dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        motion = "reduce" if reduced_motion else "no-preference"
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": motion},
            ],
        )

    async def picture(self, path: Path, whole: bool = False) -> None:
        """Save what is to be seen as a PNG."""
        told = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        _save(path, base64.b64decode(told["data"]))


@contextlib.asynccontextmanager
async def open_tab(chromium: str, profile: Path) -> AsyncIterator[Tab]:
    """A tab of a browser of its own, that ends with the block."""
    process = _start(chromium, profile)
    try:
        port = await _port(profile / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            address = f"http://127.0.0.1:{port}/json/new?about:blank"
            async with session.put(address) as answer:
                where = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
            async with session.ws_connect(where, max_msg_size=0) as socket:
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.call(f"{domain}.enable")
                yield tab
                listening.cancel()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(chromium: str, profile: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while asyncio.get_running_loop().time() < deadline and process.poll() is None:
        if lines := _lines(file):
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise AssertionError("the browser did not start")


def _lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def _save(path: Path, content: bytes) -> None:
    path.write_bytes(content)
