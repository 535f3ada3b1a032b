"""A TCP line between a worker and the brokers that can be cut off, and healed.

Nothing is told to either side while it is cut: connections stay open and no byte comes through.
When the line heals, what was on its way arrives after all, as on a real network, where the sender's
kernel repeats it: requests of a worker that has long lost its partitions among them. Or it is lost
and the connections are broken, as after a time that a kernel or a router allows them. Or a router
has forgotten the connections there were, and nobody is told: they are silent for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping

_CHUNK_BYTES = 65_536
_PATIENCE_S = 10.0
#: Where a request's key stands, behind its length, and that of Produce
#: (https://kafka.apache.org/protocol#The_Messages_Produce).
_REQUEST_KEY = slice(4, 6)
_PRODUCE = b"\x00\x00"


class Line:
    """Listens on the ports of `ports` on 127.0.0.1 and leads each to its target port."""

    def __init__(self, ports: Mapping[int, int]) -> None:
        self._ports = ports
        self._loop = asyncio.new_event_loop()
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._awaited_topic: bytes | None = None
        self._is_sent = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_PATIENCE_S)

    def cut(self) -> None:
        """Let nothing through from now on."""
        self._loop.call_soon_threadsafe(self._is_whole.clear)

    def cut_when_sent(self, topic: str, patience_s: float) -> bool:
        """Cut the line at the next request with records for this topic, which is held back too.

        Returns when that has come; False, and nothing is cut, where it has not within
        `patience_s`. The requests must be plain Kafka, begun with the connection's own write.
        """
        self._is_sent.clear()
        self._loop.call_soon_threadsafe(self._await_topic, topic.encode())
        if self._is_sent.wait(patience_s):
            return True
        self._loop.call_soon_threadsafe(self._await_topic, None)
        return False

    def _await_topic(self, topic: bytes | None) -> None:
        self._awaited_topic = topic

    def _look_at(self, data: bytes) -> None:
        """See what goes to a node, before it does."""
        topic = self._awaited_topic
        if topic is not None and data[_REQUEST_KEY] == _PRODUCE and topic in data:
            self._awaited_topic = None
            self._is_whole.clear()
            self._is_sent.set()

    def heal(self, keeps_connections: bool = True) -> None:
        """Let all through again: what was held back first, or only what comes on new connections.

        Without a cut, `heal(False)` breaks the connections that there are.
        """
        self._loop.call_soon_threadsafe(self._heal, keeps_connections)

    def _heal(self, keeps_connections: bool) -> None:
        if not keeps_connections:
            for task in self._tasks:
                task.cancel()
        self._is_whole.set()

    def silence(self) -> None:
        """Let nothing through, ever again, on the connections that there are; new ones work."""
        self._loop.call_soon_threadsafe(self._silence)

    def _silence(self) -> None:
        self._is_whole.clear()  # those that there are go on waiting for this one
        self._is_whole = asyncio.Event()
        self._is_whole.set()

    def close(self) -> None:
        """Close all connections and listen no more."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    async def _listen(self) -> None:
        for port, target in self._ports.items():

            async def lead(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int = target
            ) -> None:
                task = asyncio.ensure_future(self._lead(reader, writer, target))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

            await asyncio.start_server(lead, "127.0.0.1", port)

    async def _lead(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int
    ) -> None:
        """Carry one connection to its end. It is closed in any case: nobody else would close it."""
        is_whole = self._is_whole  # of this connection: those that come later may have another one
        try:
            await is_whole.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
            try:
                await asyncio.gather(
                    _pump(reader, far_writer, is_whole, self._look_at),
                    _pump(far_reader, writer, is_whole),
                )
            finally:
                far_writer.close()
        except OSError:  # the node is down
            pass
        finally:
            writer.close()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    is_whole: asyncio.Event,
    look_at: Callable[[bytes], None] = lambda data: None,
) -> None:
    """Carry one direction to its end; the other one goes on, unless this one breaks."""
    try:
        while data := await reader.read(_CHUNK_BYTES):
            await is_whole.wait()
            look_at(data)
            await is_whole.wait()  # it may have been cut by what was seen
            writer.write(data)
            await writer.drain()
        await is_whole.wait()
        writer.write_eof()
    except OSError:  # one side is gone without a word, as a process that was killed
        await is_whole.wait()
        writer.transport.abort()
