"""A rival: Faust as it is, doing the raw loop's work: an agent, a table in RocksDB, an output.

Run as a file by `driftline bench rivals`, with the path of a plan as its argument. One event at a
time, over Faust's own transport, table and producer; nothing of `stream.kafka` takes part.

What differs from the others: changelog rows and outputs are sent one by one, and offsets are
committed whether or not they have arrived.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import faust

_COUNT_BYTES = 4


def rival(plan: dict[str, Any]) -> faust.App:
    """The app, not yet started."""
    sizes = plan["row_bytes"]
    filler = bytes(range(256)) * (max(*sizes, plan["output_bytes"]) // 256 + 1)
    output = filler[: plan["output_bytes"]]
    app = faust.App(
        plan["group"],
        broker=f"kafka://{plan['bootstrap']}",
        store="rocksdb://",
        datadir=plan["data_dir"],
        topic_partitions=plan["partitions"],
        topic_disable_leader=True,
        broker_commit_interval=plan["commit_interval_s"],
        consumer_auto_offset_reset="earliest",
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
    )
    events = app.topic(plan["events"], key_type=bytes, value_type=bytes)
    outputs = app.topic(plan["outputs"], key_type=bytes, value_type=bytes)
    rows = app.Table(
        "rows",
        partitions=plan["partitions"],
        key_type=bytes,
        value_type=bytes,
    )

    async def fold(stream: Any) -> None:
        async for event in stream.events():
            row = rows.get(event.key)
            count = 1 + (int.from_bytes(row[:_COUNT_BYTES], "little") if row else 0)
            size = sizes[min(count, len(sizes) - 1)]
            rows[event.key] = count.to_bytes(_COUNT_BYTES, "little") + filler[_COUNT_BYTES:size]
            await outputs.send(key=event.key, value=output)

    app.agent(events)(fold)
    return app


if __name__ == "__main__":
    faust.Worker(
        rival(json.loads(Path(sys.argv[1]).read_text())),
        loglevel=logging.WARNING,
        quiet=True,
        redirect_stdouts=False,
    ).execute_from_commandline()
