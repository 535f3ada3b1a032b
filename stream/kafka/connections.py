"""Lets what waits on a connection end with it, and an answer that never comes be given up.

aiokafka's client forgets a connection that it finds at its end: under uvloop that can come before
the connection itself is told, and what still waits there for an answer then waits for as long as an
answer may take (Faust allows its producer 20 minutes), and ends in a KeyError. Under uvloop, too, a
transport that is closed raises RuntimeError, where aiokafka expects OSError: the task that reads
metadata dies of it, and whoever waits for metadata waits for ever
(https://github.com/aio-libs/aiokafka/issues/1038).
"""

from __future__ import annotations

from typing import Any

from aiokafka import conn as aiokafka_conn
from aiokafka.conn import AIOKafkaConnection, CloseReason


class Connection(AIOKafkaConnection):  # type: ignore[misc]
    """A connection that closes as soon as somebody finds it at its end.

    What waits on it then raises KafkaConnectionError, as aiokafka's clients expect.
    """

    def connected(self) -> bool:
        is_open = self._reader is not None and not self._loop.is_closed()
        if is_open and (self._reader.at_eof() or self._writer.is_closing()):
            self.close(reason=CloseReason.CONNECTION_BROKEN)
        return bool(super().connected())

    def send(self, request: Any, expect_response: bool = True) -> Any:
        self.connected()
        return super().send(request, expect_response)


def mend_connections() -> None:
    """Let all of aiokafka's clients of this process use `Connection` from now on."""
    aiokafka_conn.AIOKafkaConnection = Connection


def bound_answers(producer: Any, longest_s: float) -> None:
    """Let an AIOKafkaProducer that is not started yet wait at most so long for one answer.

    Then the connection is closed, and the next attempt opens another. aiokafka has one time for
    that and for a delivery with all its attempts: the delivery's stays as it is.
    """
    producer.client._request_timeout_ms = int(longest_s * 1000)
    producer._sender._request_timeout_ms = int(longest_s * 1000)
