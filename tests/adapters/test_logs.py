"""One event, one line, whatever is in it."""

import json
import logging

import pytest
import structlog

from sightline.adapters import logs
from sightline.adapters.redaction import TEXT_CHARS_MAX
from sightline.adapters.settings import Settings

HOSTILE = {
    "breaks": "a\nb\r\nc\u2028d\u2029e\x85f",
    "json": '"}\n{"event": "forged"}',
    "surrogate": "\ud800",
    "nul": "\0",
    "colour": "\x1b[31m",
    "number": float("nan"),
    "bytes": b"\xff",
    "set": {1},
    "object": object(),
    "nested": {"a": float("inf"), 1: ["\n"]},
    "keys": {(1, 2): 3},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_one_line_of_strict_json(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    structlog.get_logger("test").info("told", field=HOSTILE[what])
    logging.getLogger("library").warning("told %s", HOSTILE[what])
    lines = capsys.readouterr().err.split("\n")
    assert lines.pop() == ""
    assert len(lines) == 2
    for line in lines:
        told = json.loads(line, parse_constant=pytest.fail)
        assert told["level"] in {"info", "warning"}
        assert told["timestamp"].endswith("Z")


def test_an_exception_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    try:
        raise ValueError("a\nb")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert ["ValueError: a" in json.loads(line)["exception"] for line in lines] == [True, True]


def test_long_texts_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    structlog.get_logger().info("told", field="x" * 100_000)
    assert len(capsys.readouterr().err) < 2 * TEXT_CHARS_MAX


def test_levels_are_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json", log_level="warning"))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


def test_pretty_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="pretty"))
    structlog.get_logger().info("told", field="a\nb")
    text = capsys.readouterr().err
    assert "told" in text
    assert not text.startswith("{")
    assert len(text.splitlines()) == 1
