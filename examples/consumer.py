"""Keep the newest list of every user: `python examples/consumer.py`."""

import json
import os

from kafka import KafkaConsumer

bootstrap = os.environ.get("DRIFTLINE_BOOTSTRAP", "127.0.0.1:9092")
topic = os.environ.get("DRIFTLINE_PREFIX", "") + "recommendations"
newest = {}
for record in KafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest"):
    if record.value is None:
        newest.pop(record.key, None)
        continue
    found = json.loads(record.value)
    if found["seq"] >= newest.get(record.key, found)["seq"]:
        newest[record.key] = found
        print(record.key.decode(), [item["item_id"] for item in found["items"]], flush=True)
