"""Lets what waits on a connection end with it, and an answer that never comes be given up.

aiokafka's client forgets a connection that it finds at its end: under uvloop that can come before
the connection itself is told, and what still waits there for an answer then waits for as long as an
answer may take (Faust allows its producer 20 minutes), and ends in a KeyError. Under uvloop, too, a
transport that is closed raises RuntimeError, where aiokafka expects OSError: the task that reads
metadata dies of it, and whoever waits for metadata waits for ever
(https://github.com/aio-libs/aiokafka/issues/1038).

And aiokafka has one time for an answer and for what may take long by itself: a delivery with all
its attempts, a group that waits for its other members. Over a connection that a router or a broker
has forgotten, no answer comes.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from aiokafka import conn as aiokafka_conn
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest
from aiokafka.protocol.produce import ProduceRequest

#: Longest wait for an answer.
ANSWER_S = 10.0
#: The same of an acknowledgement, that waits for replicas: what Kafka's own producer allows it
#: (request.timeout.ms).
ACKNOWLEDGEMENT_S = 30.0

#: These are answered when all members of the group have come.
_WAITING_FOR_OTHERS = (JoinGroupRequest, SyncGroupRequest)


class Connection(AIOKafkaConnection):  # type: ignore[misc]
    """A connection that closes as soon as somebody finds it at its end, or an answer too late.

    What waits on it then raises KafkaConnectionError, as aiokafka's clients expect, and who waited
    for the late answer TimeoutError; they open another connection.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._longest_s: float = self._request_timeout
        self._request_timeout: float = min(self._longest_s, ANSWER_S)

    def connected(self) -> bool:
        is_open = self._reader is not None and not self._loop.is_closed()
        if is_open and (self._reader.at_eof() or self._writer.is_closing()):
            self.close(reason=CloseReason.CONNECTION_BROKEN)
        return bool(super().connected())

    def send(self, request: Any, expect_response: bool = True) -> Any:
        self.connected()
        answer_s, self._request_timeout = self._request_timeout, self._patience_s(request)
        try:
            answer = super().send(request, expect_response)
        finally:
            self._request_timeout = answer_s
        return self._in_time(answer) if expect_response else answer

    def _patience_s(self, request: Any) -> float:
        if isinstance(request, _WAITING_FOR_OTHERS):
            return self._longest_s
        longest_s = ACKNOWLEDGEMENT_S if isinstance(request, ProduceRequest) else ANSWER_S
        return min(self._longest_s, longest_s)

    async def _in_time(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except TimeoutError:
            self.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise


def mend_connections() -> None:
    """Let all of aiokafka's clients of this process use `Connection` from now on."""
    aiokafka_conn.AIOKafkaConnection = Connection
