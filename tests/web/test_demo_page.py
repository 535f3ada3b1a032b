"""The demo as a newcomer has it: one command, and a page in Chromium that moves under clicks."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab
from demonstration import PATIENCE_S, Demo
from visiting import TOO_WIDE, assert_lists_followed, take_items, until_listed

#: From the command to a page that answers and lists for its visitor.
LIVE_WITHIN_S = 60.0


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    pytest.importorskip("noida_db", reason="the embedded broker is not installed (extra demo)")
    one = Demo(tmp_path / "demo")
    yield one
    if one.process.poll() is None:
        one.process.terminate()
        one.process.wait(PATIENCE_S)


async def test_one_command_and_the_page_moves_under_clicks_and_outlives_its_worker(
    demo: Demo, tab: Tab
) -> None:
    begun = time.monotonic()
    url = demo.wait_for(r"http://127\.0\.0\.1:\d+/")[0]
    await tab.open(url)
    await until_listed(tab)
    live_s = time.monotonic() - begun
    first_list = demo.wait_for(r"list +(\d+\.\d) s")[1]
    print(f"from the command: first list {first_list} s, page with a list {live_s:.1f} s")
    assert live_s < LIVE_WITHIN_S

    clicks = await take_items(tab, 10)
    await tab.call("Network.clearBrowserCookies")  # a new visitor: taken items are no news
    await tab.open(url)
    await until_listed(tab)
    assert_lists_followed(clicks + await take_items(tab, 10))

    await the_engine_moves(tab)
    await a_killed_worker_comes_back(demo, tab)
    await tab.look(390, 844, "light")
    await tab.value("location.hash = 'you'")
    assert await tab.value(TOO_WIDE) == []
    assert not tab.errors
    assert all(request.startswith((url, "about:")) for request in tab.requests), tab.requests
    demo.stop()
    assert demo.left_behind() == []


async def the_engine_moves(tab: Tab) -> None:
    await tab.value("location.hash = 'engine'")
    await tab.until("document.querySelectorAll('#figures dd').length > 5")
    before = await tab.value("document.getElementById('figures').innerText")
    await tab.until(f"document.getElementById('figures').innerText !== {json.dumps(before)}")


async def a_killed_worker_comes_back(demo: Demo, tab: Tab) -> None:
    """The page says that nothing answers; then the visitor's next click has a list again."""
    worker = int(re.findall(r"kill -9 (\d+)", demo.said())[-1])
    await tab.value("location.hash = 'you'")
    os.kill(worker, signal.SIGKILL)
    before = await tab.value("document.getElementById('after').dataset.seq")
    await tab.value("document.querySelector('.tile:not(.taken)').click()")
    await tab.until("!document.getElementById('alarm').hidden", 60)
    await tab.until("document.getElementById('alarm').hidden", 90)
    await tab.until(f"document.getElementById('after').dataset.seq !== {json.dumps(before)}", 60)
