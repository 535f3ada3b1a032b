"""Topics are asked for, again and again, also while no broker answers."""

from __future__ import annotations

import socket
import threading

import pytest
from kafka.errors import KafkaError

from stream import topic_watch
from stream.settings import Settings
from stream.topic_watch import TopicWatch
from stream.topics import FoundTopics


def test_a_look_that_no_broker_answers_leaves_no_thread(monkeypatch):
    monkeypatch.setattr(topic_watch, "_TIMEOUT_MS", 300)
    with socket.socket() as nobody:  # bound, and listening to nobody
        nobody.bind(("127.0.0.1", 0))
        settings = Settings(bootstrap=f"127.0.0.1:{nobody.getsockname()[1]}")
        watch = TopicWatch(settings, FoundTopics({}, {}), lambda name, topic_id: None)
        before = set(threading.enumerate())

        for _ in range(2):
            with pytest.raises((KafkaError, OSError)):
                watch._ask()

        for thread in set(threading.enumerate()) - before:
            thread.join(5.0)
        assert set(threading.enumerate()) <= before
