"""What a visitor of the page does and looks at."""

from __future__ import annotations

import asyncio
import json
import statistics
from dataclasses import dataclass

from browser import Tab

MAX_MS = 1000
#: What reaches beyond the window although it is in no place that scrolls by itself.
TOO_WIDE = """[...document.querySelectorAll('body *')]
  .filter((e) => !e.closest('.scroll, .tiles') && !e.ownerSVGElement)
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => `${e.tagName}#${e.id}.${e.className}`)"""


@dataclass(frozen=True)
class Taken:
    """An item that was clicked, and what came of it."""

    title: str
    took_ms: float
    shown: str  # the list's text
    is_named: bool  # by a reason in it


async def until_listed(tab: Tab) -> None:
    """Until items are offered, and the list of the visit is there."""
    await tab.until("document.querySelectorAll('.tile').length > 5")
    await tab.until("document.querySelectorAll('#list li').length > 3")
    await tab.until("!document.getElementById('after').hidden")


async def taken(tab: Tab, selector: str) -> Taken:
    """Click what a selector names, and wait for the new list."""
    before = await tab.value("document.getElementById('after').dataset.seq")
    title = await tab.value(f"document.querySelector('{selector} b, {selector} .title').innerText")
    await tab.value(f"document.querySelector('{selector}').click()")
    await tab.until(f"document.getElementById('after').dataset.seq !== {json.dumps(before)}")
    took_ms = await tab.value("document.getElementById('after').dataset.ms")
    shown = await tab.value("document.getElementById('list').innerText")
    reasons = await tab.value(
        "[...document.querySelectorAll('#list .why b')].map((e) => e.innerText)"
    )
    return Taken(str(title), float(took_ms), str(shown), title in reasons)


async def take_items(tab: Tab, count: int) -> list[Taken]:
    """Click so many items one after another."""
    done = []
    for _ in range(count):
        done.append(await taken(tab, ".tile:not(.taken)"))
        await asyncio.sleep(0.3)  # within the rate that a visitor is held to
    return done


def assert_lists_followed(clicks: list[Taken]) -> None:
    """Half of the lists came within a second, nearly all differ, and most name what was clicked."""
    times_ms = [click.took_ms for click in clicks]
    named = sum(click.is_named for click in clicks)
    print(
        f"{len(clicks)} clicks: the list changed after {statistics.median(times_ms):.0f} ms (p50), "
        f"{max(times_ms):.0f} ms at most; {named} times a reason named the item"
    )
    assert statistics.median(times_ms) < MAX_MS
    assert len({click.shown for click in clicks}) >= len(clicks) - 4
    assert named >= len(clicks) // 2
