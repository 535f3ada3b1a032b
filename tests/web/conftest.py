"""An engine with a small catalogue and a past, its page, and a browser's tab."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import browser
import pytest
from engine import Engine
from page_process import PageProcess, fill


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """The engine that all tests have, with something to be seen."""
    fill(engine)
    return engine


@pytest.fixture
def page(engine: Engine) -> Iterator[PageProcess]:
    page = PageProcess(engine)
    yield page
    assert page.stop() == 0, page.log()


@pytest.fixture
async def tab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[browser.Tab]:
    chromium = browser.program()
    if chromium is None:
        reason = "no Chromium: install the package chromium, or name one in CHROMIUM"
        if request.config.getoption("--require-broker"):
            pytest.fail(f"--require-broker, and {reason}", pytrace=False)
        pytest.skip(reason)
    async with browser.open_tab(chromium, tmp_path / "browser") as tab:
        yield tab
