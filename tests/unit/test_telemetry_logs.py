"""A record is one line, for people and for machines."""

import json
import logging

import pytest

from fabric.telemetry.logs import setup_logging


@pytest.fixture(autouse=True)
def _root_logger_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def log_a_failure():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("fabric.test").exception("request %s failed", "r-1")


def test_a_record_with_a_trace_is_one_line(capsys):
    setup_logging("INFO")
    log_a_failure()
    (line,) = capsys.readouterr().err.splitlines()
    assert "ERROR fabric.test: request r-1 failed" in line
    assert "ValueError" in line


def test_a_record_is_one_json_object(capsys):
    setup_logging("INFO", json=True)
    log_a_failure()
    logging.getLogger("fabric.test").debug("not at this level")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"]) == ("ERROR", "fabric.test")
    assert record["message"] == "request r-1 failed"
    assert "two\nlines" in record["trace"]
