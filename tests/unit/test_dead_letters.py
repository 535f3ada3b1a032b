"""A dead letter keeps what was refused, why, and where it lay."""

from __future__ import annotations

from stream.dead_letters import MAX_KEPT_BYTES, DeadLetter


def test_key_and_value_are_those_that_were_refused_and_headers_tell_why_and_where():
    letter = DeadLetter("not JSON", "user-events", 3, 17, b"ada", b"rubbish")

    assert dict(letter.headers()) == {
        "reason": b"not JSON",
        "topic": b"user-events",
        "partition": b"3",
        "offset": b"17",
        "bytes": b"7",
    }
    assert (letter.key, letter.kept_value()) == (b"ada", b"rubbish")


def test_a_value_that_is_too_large_is_cut_and_its_size_is_told():
    letter = DeadLetter("too long", "items", 0, 1, None, b"x" * (MAX_KEPT_BYTES + 5))

    assert letter.kept_value() == b"x" * MAX_KEPT_BYTES
    assert dict(letter.headers())["bytes"] == str(MAX_KEPT_BYTES + 5).encode()


def test_a_null_value_stays_null():
    letter = DeadLetter("no value", "user-events", 0, 1, b"ada", None)

    assert letter.kept_value() is None
    assert dict(letter.headers())["bytes"] == b"0"
