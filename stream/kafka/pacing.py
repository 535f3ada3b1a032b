"""Keep a consumer from asking in a tight loop where a broker answers empty fetches at once.

Kafka waits for `fetch_max_wait_ms` before it answers that there is nothing; noida-db does not, and
an idle consumer would take most of a core.
"""

from __future__ import annotations

import asyncio
from typing import Any

#: An empty answer that came sooner is followed by a pause: what it adds to a record's way.
EMPTY_PAUSE_S = 0.01


def pace_empty_fetches(consumer: Any, pause_s: float = EMPTY_PAUSE_S) -> None:
    """Wait `pause_s` after every fetch of a started AIOKafkaConsumer that had nothing at once.

    Changes nothing where the broker itself waits.
    """
    fetcher = consumer._fetcher
    fetch = fetcher._proc_fetch_request

    async def fetch_and_pause(assignment: Any, node_id: int, request: Any) -> bool:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        has_data: bool = await fetch(assignment, node_id, request)
        if not has_data and loop.time() - begun < pause_s:
            try:
                await asyncio.sleep(pause_s)
            except asyncio.CancelledError:  # closing: as the method itself does
                return False
        return has_data

    fetcher._proc_fetch_request = fetch_and_pause
