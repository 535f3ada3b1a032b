"""The line that chaos cuts: what it does to connections, beside a server that sends all back."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from stream.chaos.line import Line

PATIENCE_S = 10.0


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(100):
            self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def line() -> Iterator[tuple[Line, int]]:
    """A line to an echo server, and the port that leads to it."""
    with Server(("127.0.0.1", 0), Echo) as server, socket.create_server(("127.0.0.1", 0)) as free:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = free.getsockname()[1]
        free.close()
        line = Line({port: server.server_address[1]})
        yield line, port
        line.close()
        server.shutdown()


def connected(port: int, patience_s: float = PATIENCE_S) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=patience_s)


def echo(connection: socket.socket, word: bytes) -> bytes:
    connection.sendall(word)
    return connection.recv(100)


def cut(line: Line) -> None:
    """Cut it, and return when it is: what comes afterwards is held back."""
    line.cut()
    done = threading.Event()
    line._loop.call_soon_threadsafe(done.set)
    assert done.wait(PATIENCE_S)


def test_what_was_held_back_arrives_when_the_line_heals(line):
    line, port = line
    with connected(port) as before:
        assert echo(before, b"1") == b"1"
        cut(line)
        before.sendall(b"2")
        with connected(port) as meanwhile:
            meanwhile.sendall(b"3")
            line.heal()

            assert before.recv(100) == b"2"
            assert meanwhile.recv(100) == b"3"


def test_all_connections_of_a_cut_that_is_not_kept_are_closed(line):
    line, port = line
    with connected(port) as before:
        assert echo(before, b"1") == b"1"
        cut(line)
        with connected(port) as meanwhile:
            meanwhile.sendall(b"2")
            while len(line._tasks) < 2:  # it is accepted
                pass
            line.heal(keeps_connections=False)

            assert before.recv(100) == b""
            assert meanwhile.recv(100) == b""
    with connected(port) as after:
        assert echo(after, b"3") == b"3"


def test_silent_connections_stay_silent_and_open_while_new_ones_work(line):
    line, port = line
    with connected(port) as before:
        assert echo(before, b"1") == b"1"
        line.silence()
        with connected(port) as after:
            assert echo(after, b"2") == b"2"
            before.settimeout(0.5)
            with pytest.raises(TimeoutError):
                echo(before, b"3")
            line.heal()
            with pytest.raises(TimeoutError):
                before.recv(100)


TOPIC = "app-state-changelog"


def request(key: int, topic: str) -> bytes:
    """The begin of a request that names a topic, in Kafka's framing."""
    body = key.to_bytes(2) + topic.encode()
    return len(body).to_bytes(4) + body


@pytest.mark.parametrize(
    "other",
    [request(3, TOPIC), request(0, "another-topic")],
    ids=["metadata of the topic", "records for another topic"],
)
def test_a_line_is_cut_by_records_for_a_topic_which_are_held_back_and_by_nothing_else(line, other):
    line, port = line
    with connected(port) as before, ThreadPoolExecutor(1) as pool:
        assert echo(before, b"1") == b"1"
        is_cut = pool.submit(line.cut_when_sent, TOPIC, PATIENCE_S)
        while line._awaited_topic is None:
            pass
        assert echo(before, other) == other
        assert not is_cut.done()

        before.sendall(request(0, TOPIC))
        assert is_cut.result()
        before.settimeout(0.5)
        with pytest.raises(TimeoutError):
            before.recv(100)

        before.settimeout(PATIENCE_S)
        line.heal()
        assert before.recv(100) == request(0, TOPIC)


def test_where_no_records_come_in_time_nothing_is_cut_then_or_later(line):
    line, port = line

    assert not line.cut_when_sent(TOPIC, 0.05)

    with connected(port) as after:
        assert echo(after, request(0, TOPIC)) == request(0, TOPIC)
