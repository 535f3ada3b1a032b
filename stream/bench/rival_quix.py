"""A rival: Quix Streams with its RocksDB state, doing the raw loop's work.

Run as a file by `driftline bench rivals`, with the path of a plan as its argument, in an
environment that has quixstreams: it imports nothing of Driftline. A stateful `apply` reads and
writes the user's bytes, and what it returns goes to the topic of outputs.

What differs from the others: a checkpoint flushes state, changelog and offsets together, every
`commit_interval_s`; the partitioner is librdkafka's with murmur2 named.
"""

import json
import sys
from pathlib import Path
from typing import Any

from quixstreams import Application, State  # type: ignore[import-not-found]  # elsewhere

_KEY = "row"
_COUNT_BYTES = 4


def main(plan: dict[str, Any]) -> None:
    """Until SIGTERM."""
    sizes = plan["row_bytes"]
    filler = bytes(range(256)) * (max(*sizes, plan["output_bytes"]) // 256 + 1)
    output: bytes = filler[: plan["output_bytes"]]

    def fold(_: bytes, state: State) -> bytes:
        row = state.get_bytes(_KEY)
        count = 1 + (int.from_bytes(row[:_COUNT_BYTES], "little") if row else 0)
        size = sizes[min(count, len(sizes) - 1)]
        state.set_bytes(_KEY, count.to_bytes(_COUNT_BYTES, "little") + filler[_COUNT_BYTES:size])
        return output

    app = Application(
        plan["bootstrap"],
        consumer_group=plan["group"],
        auto_offset_reset="earliest",
        commit_interval=plan["commit_interval_s"],
        state_dir=Path(plan["data_dir"]),
        consumer_poll_timeout=0.1,
        producer_extra_config={"partitioner": "murmur2_random", "acks": "all"},
        loglevel="WARNING",
    )
    raw = {"key_deserializer": "bytes", "value_deserializer": "bytes"}
    events = app.topic(plan["events"], **raw)
    outputs = app.topic(plan["outputs"], key_serializer="bytes", value_serializer="bytes")
    app.dataframe(events).apply(fold, stateful=True).to_topic(outputs)
    app.run()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
