"""Send clicks and a visit: `python examples/producer.py`.

With confluent-kafka (librdkafka) set "partitioner": "murmur2_random"; its own default lays records
where no worker looks for them first.
"""

import json
import os
import time
import uuid

from kafka import KafkaProducer

bootstrap = os.environ.get("DRIFTLINE_BOOTSTRAP", "127.0.0.1:9092")
topic = os.environ.get("DRIFTLINE_PREFIX", "") + "user-events"
producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")


def send(user: str, kind: str, item: str | None = None) -> None:
    """Send one event, keyed by its user: all of a user's events lie on one partition, in order."""
    event = {
        "event_id": str(uuid.uuid4()),  # sent twice, it counts once
        "type": kind,
        "event_time": int(time.time() * 1000),
        "user_id": user,
    }
    if item is not None:
        event["item_id"] = item
    producer.send(topic, key=user.encode(), value=json.dumps(event).encode())


for item in ("kind-of-blue", "a-love-supreme", "mingus-ah-um"):
    send("bob", "click", item)
send("ada", "click", "kind-of-blue")
producer.flush()

time.sleep(1)  # ada comes back later, and wants a list
send("ada", "visit")
producer.flush()
