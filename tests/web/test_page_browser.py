"""The page as a person has it: in Chromium, wide and narrow, with and without a mouse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

from browser import Tab
from engine import Engine
from page_process import CATALOGUE, TITLES, PageProcess, click
from visiting import TOO_WIDE, assert_lists_followed, take_items, until_listed

CLICKS = 20
MAX_MS = 1000
PARTS = ("you", "user", "engine")
#: Controls and pictures without a name that a screen reader could say.
_NAMELESS = """[...document.querySelectorAll('a, button, input, select, summary, [role=img]')]
  .filter((e) => e.checkVisibility())
  .filter((e) => !(e.innerText?.trim() || e.getAttribute('aria-label') || e.labels?.length))
  .map((e) => e.outerHTML.slice(0, 200))"""


@contextlib.asynccontextmanager
async def flow(engine: Engine) -> AsyncIterator[None]:
    """Users who go on clicking, some with a known truth, for the length of the block."""
    engine.worker().start()
    engine.wait_until_all_is_done()
    rng = random.Random(5)

    async def act() -> None:
        number = 10_000
        while True:
            number += 1
            user = f"past-{rng.randrange(24)}"
            category = rng.choice(list(TITLES))
            records = [
                click(user, number, int(time.time() * 1000), f"{category}-{rng.randrange(5)}")
            ]
            await asyncio.to_thread(engine.send, records)
            await asyncio.sleep(0.1)

    acting = asyncio.create_task(act())
    try:
        yield
    finally:
        acting.cancel()


async def open_page(tab: Tab, page: PageProcess) -> None:
    await tab.open(page.url)
    await until_listed(tab)


async def test_a_click_moves_the_list_within_a_second_and_the_reason_names_the_item(
    engine: Engine, page: PageProcess, tab: Tab
) -> None:
    async with flow(engine):
        await open_page(tab, page)
        first = await take_items(tab, CLICKS // 2)
        await tab.call("Network.clearBrowserCookies")  # a new visitor: taken items are no news
        await open_page(tab, page)
        taken = first + await take_items(tab, CLICKS // 2)
        assert not tab.errors
        assert all(url.startswith((page.url, "about:")) for url in tab.requests), tab.requests

    assert_lists_followed(taken)


async def test_figures_move_and_every_part_fits_a_narrow_window_and_is_named(
    engine: Engine, page: PageProcess, tab: Tab, tmp_path: Path
) -> None:
    async with flow(engine):
        await open_page(tab, page)
        for width, scheme in ((390, "light"), (390, "dark"), (1360, "light")):
            await tab.look(width, 844, scheme)
            for part in PARTS:
                await tab.value(f"location.hash = '{part}'")
                await tab.until(f"!document.getElementById('part-{part}').hidden")
                if part == "user":
                    await tab.until("document.querySelectorAll('#user-figure .band').length > 1")
                if part == "engine":
                    await tab.until("document.querySelectorAll('#figures dd').length > 5")
                assert await tab.value(TOO_WIDE) == []
                assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
                assert await tab.value(_NAMELESS) == []
        await tab.value("location.hash = 'engine'")
        before = await tab.value("document.getElementById('figures').innerText")
        await tab.until(f"document.getElementById('figures').innerText !== {json.dumps(before)}")
        await tab.until("document.querySelectorAll('#rates-figure .curve').length === 4")
        assert not tab.errors


async def test_the_page_can_be_used_with_the_keyboard_alone(
    engine: Engine, page: PageProcess, tab: Tab
) -> None:
    async with flow(engine):
        await tab.look(1360, 900, reduced_motion=True)
        await open_page(tab, page)
        before = await tab.value("document.getElementById('after').dataset.seq")
        for _ in range(40):
            await press(tab, "Tab", 9)
            if await tab.value("document.activeElement.matches('.tile')"):
                break
        assert await tab.value("document.activeElement.matches('.tile')")
        assert await tab.value("document.activeElement.matches(':focus-visible')")
        await press(tab, "Enter", 13)
        await tab.until(f"document.getElementById('after').dataset.seq !== {json.dumps(before)}")
        assert await tab.value("document.activeElement.matches('.tile.taken')")
        said = await tab.value("document.getElementById('said').innerText")
        assert said.startswith("New list")
        assert await tab.value("document.getAnimations().length") == 0


async def press(tab: Tab, key: str, code: int) -> None:
    text = "\r" if key == "Enter" else ""
    pressed = {"key": key, "windowsVirtualKeyCode": code, "text": text}
    await tab.call("Input.dispatchKeyEvent", type="keyDown", **pressed)
    await tab.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)


async def test_a_worker_that_is_killed_is_said_to_and_lists_go_on_after_it_is_back(
    engine: Engine, page: PageProcess, tab: Tab
) -> None:
    async with flow(engine):
        await open_page(tab, page)
        engine.workers[0].kill()
        await tab.until("!document.getElementById('alarm').hidden")
        alarm = await tab.value("document.getElementById('alarm').innerText")
        assert "stopped answering" in alarm and "Nothing is lost" in alarm
        tile = ".tile:not(.taken)"
        before = await tab.value("document.getElementById('after').dataset.seq")
        await tab.value(f"document.querySelector('{tile}').click()")
        engine.workers[0].start()
        await tab.until("document.getElementById('alarm').hidden", 60)
        assert "answers again" in await tab.value("document.getElementById('notice').innerText")
        await tab.until(f"document.getElementById('after').dataset.seq !== {json.dumps(before)}")
        assert not tab.errors


async def test_titles_and_ids_are_shown_as_they_are_and_never_run(
    engine: Engine, page: PageProcess, tab: Tab
) -> None:
    hostile = "<img src=x onerror=\"document.title='run'\">"
    item = json.dumps(
        {"item_id": "hostile", "version": 1, "title": hostile, "categories": [hostile]}
    )
    engine.producer.send(engine.topic("items"), key=b"hostile", value=item.encode())
    user = f"user-{hostile}"
    engine.send([click(user, 1, int(time.time() * 1000), "hostile")])
    async with flow(engine):
        await open_page(tab, page)
        await tab.value("document.getElementById('words').value = 'onerror'")
        await tab.value("document.getElementById('words').dispatchEvent(new Event('input'))")
        await tab.until("document.querySelectorAll('.tile').length === 1")
        assert await tab.value("document.querySelector('.tile b').innerText") == hostile
        await tab.value(f"location.hash = 'user/' + encodeURIComponent({json.dumps(user)})")
        await tab.until("document.querySelectorAll('#user-figure circle').length > 0")
        assert await tab.value("document.getElementById('user-name').innerText") == user
        assert await tab.value("document.title") != "run"
        assert await tab.value("document.querySelectorAll('main img').length") == 0
        assert not tab.errors


async def test_items_are_found_by_their_category(
    engine: Engine, page: PageProcess, tab: Tab
) -> None:
    async with flow(engine):
        await open_page(tab, page)
        await tab.value("document.getElementById('category').value = 'jazz'")
        await tab.value("document.getElementById('category').dispatchEvent(new Event('change'))")
        jazz = len([item for item in CATALOGUE if item.categories == ["jazz"]])
        await tab.until(f"document.querySelectorAll('.tile').length === {jazz}")
