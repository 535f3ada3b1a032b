"""Log lines hold their fields, and libraries keep quiet."""

from __future__ import annotations

import logging

import pytest

from stream.logs import set_up_logging


@pytest.fixture(autouse=True)
def logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_ends_with_the_fields_of_extra(capsys):
    set_up_logging("info")

    logging.getLogger("stream.test").info("released", extra={"version": 3, "took_ms": 1.5})

    line = capsys.readouterr().err.strip()
    assert line.endswith("INFO stream.test released version=3 took_ms=1.5")


def test_below_the_level_nothing_is_written(capsys):
    set_up_logging("warning")

    logging.getLogger("stream.test").info("released")

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["aiokafka", "faust", "mode", "kafka"])
def test_libraries_are_heard_from_warning_on_unless_all_is_asked_for(name, capsys):
    set_up_logging("info")
    logging.getLogger(name).info("a detail")
    logging.getLogger(name).warning("a warning")
    quiet = capsys.readouterr().err

    set_up_logging("debug")
    logging.getLogger(name).debug("a detail")

    assert "a detail" not in quiet and "a warning" in quiet
    assert "a detail" in capsys.readouterr().err


def test_that_a_service_starts_or_stops_is_no_news(capsys):
    set_up_logging("info")
    logging.getLogger("stream.live").info("[^---LiveParts]: Starting...")

    assert capsys.readouterr().err == ""


def test_setting_up_twice_writes_every_line_once(capsys):
    set_up_logging("info")
    set_up_logging("info")

    logging.getLogger("stream.test").info("once")

    assert capsys.readouterr().err.count("once") == 1
