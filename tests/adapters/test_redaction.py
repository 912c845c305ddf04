"""No secret in a line, whatever it is wrapped in; and a line costs little, whatever is in it."""

import io
import json
import logging
import re
import time
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from sightline.adapters import logs, redaction
from sightline.adapters.redaction import Redactor
from sightline.adapters.settings import Settings

SETTINGS = Settings(
    log_format="json",
    secret_key="first-secret-of-32-bytes-or-more!,second-secret-of-32-bytes-or-more",
    sealing_key="c2VhbGluZy1rZXktb2YtMzItYnl0ZXMtb3ItbW9yZSE=",
    s3_secret_access_key="s3-Secret/Access+Key",
    database_url="postgresql://sightline:dsn-p4ss@db:5432/sightline",
    redis_url="redis://:valkey-p4ss@cache:6379/0",
)
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.canary-signature"
KEY = "sl_7Qb2canaryKeyCanary"
EMAIL = "canary.person+x@example.org"

# Each text, and what must not be left of it.
TEXTS = [
    (f"Authorization: Bearer {JWT}", JWT),
    (f"authorization={JWT}", JWT),
    ("Authorization: Basic YWRhOmNhbmFyeQ==", "YWRhOmNhbmFyeQ"),
    ("Cookie: a=canary1; session=canary2", "canary"),
    (f"[(b'host', b'x'), (b'authorization', b'Bearer {JWT}'), (b'x-api-key', b'{KEY}')]", "canary"),
    (f"{{'Authorization': 'Bearer {JWT}'}}", JWT),
    (f'{{"X-API-Key": "{KEY}"}}', KEY),
    (f"the key {KEY} is not known", KEY),
    (f"token {JWT} expired", JWT),
    ('{"email": "ada@example.org", "password": "canary, with \\"quotes\\" in it"}', "canary"),
    ('b\'{\\"password\\": \\"canary\\"}\'', "canary"),
    ("password=canary host=db", "canary"),
    ("password='canary with spaces' host=db", "canary"),
    ("connection to postgresql://ada:can@ry/x@db:5432/x failed", "can@ry"),
    ("connection to redis://:canary@cache:6379 failed", "canary"),
    ("GET /objects/assets/x?expires=1&signature=canary&x=1", "canary"),
    ("https://s3/x?X-Amz-Credential=canary&X-Amz-Signature=canary", "canary"),
    ("X-Amz-Security-Token%3Dcanary", "canary"),
    (f"Key (email)=({EMAIL}) already exists", EMAIL),
    ("/v1/users?email=canary%40example.org", "canary%40"),
    ("schlüssel für canary.ä@exämple.org", "canary"),
    ("SECRET_KEY=canary", "canary"),
    ("client_secret: canary", "canary"),
    ("-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----", "canary"),
    ("-----BEGIN EC PRIVATE KEY-----\ncanary", "canary"),
    ("PRIVATE+KEY+sightline/log-1+00000000+canary", "canary"),
    ("dsn-p4ss was refused", "dsn-p4ss"),
    ("valkey-p4ss", "valkey-p4ss"),
    ("it said s3-Secret%2FAccess%2BKey", "Access"),
    ("second-secret-of-32-bytes-or-more", "second-secret"),
    ("c2VhbGluZy1rZXktb2YtMzItYnl0ZXMtb3ItbW9yZSE=", "c2VhbGlu"),
]


@pytest.fixture
def lines() -> Any:
    """The lines since it was asked last."""
    logs.configure(SETTINGS)
    [handler] = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(io.StringIO())  # pytest takes its own away between a fixture and its test

    def read() -> list[str]:
        found: list[str] = handler.stream.getvalue().split("\n")
        handler.setStream(io.StringIO())
        assert found.pop() == ""
        for line in found:
            json.loads(line, parse_constant=pytest.fail)
        return found

    return read


@pytest.mark.parametrize(("text", "secret"), TEXTS, ids=[text[:40] for text, _ in TEXTS])
def test_no_secret_is_left_of_a_text(text: str, secret: str, lines: Any) -> None:
    structlog.get_logger("x").info("told", field=text, nested={"a": [{"b": (text,)}]})
    structlog.get_logger("x").info(text)
    logging.getLogger("library").warning("told %s", text, extra={"more": text})
    for wrapped in (text, {text: text}, [text]):
        try:
            raise ValueError(wrapped)
        except ValueError:
            logging.getLogger("library").exception("failed")
            structlog.get_logger("x").exception("failed", again=ValueError(text))
    told = lines()
    assert len(told) == 9
    assert secret in text
    found = [line for line in told if secret in line or json.dumps(secret)[1:-1] in line]
    assert found == []


def test_without_redaction_they_are_all_found(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what keeps them out is the redactor, and the texts do reach the line."""
    monkeypatch.setattr(Redactor, "text", lambda _, text: text)
    for text, secret in TEXTS:
        structlog.get_logger("x").info("told", field=text)
        assert secret in json.loads(lines()[0])["field"]


@pytest.mark.parametrize(
    "name",
    [
        *("password", "new_password", "token", "access_token", "api_key", "X-API-Key", "Authorization", "Set-Cookie"),
        *("secret", "s3_secret_access_key", "sealing_key", "email", "signature", "digital_signature"),
    ],
)
def test_fields_are_secret_by_their_name(name: str, lines: Any) -> None:
    structlog.get_logger("x").info(
        "told", **{name: "canary"}, nested={name: ["canary"]}, more=UserDict({name: b"canary"})
    )
    assert "canary" not in lines()[0]


HARMLESS = [
    "job.submitted",
    "2026-01-01T00:00:00.000000Z",
    "/v1/jobs/{job_id}",
    "0197f1d0-7d0a-7c55-8f2e-2f6f1f3e7a10",
    "42@1a2b3c4d",
    "sightline.http",
    "s3://sightline/assets/x",
    "no such session",
    "http://127.0.0.1:8000",
    "the idempotency key was sent with another request",
    "passed",
    "9 tokens",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays(text: str) -> None:
    assert Redactor(SETTINGS).text(text) == text


def test_numbers_stay_under_any_name() -> None:
    event = {"fencing_token": 7, "tokens": 3.5, "password": None, "token": ""}
    assert Redactor().plain(event) == event


def test_a_secret_across_a_cut_goes_as_a_whole() -> None:
    redactor = Redactor(SETTINGS)
    for shift in range(len(JWT) + 20):
        text = "x" * (redaction.TEXT_CHARS_MAX - shift) + f" token={JWT} " + "y" * 50_000
        assert "canary" not in redactor.clipped(text)
        assert "eyJ" not in redactor.clipped(text)
        # This one is known by what comes after it, beyond the cut.
        url = "x" * (redaction.TEXT_CHARS_MAX - shift) + f" redis://ada:canary-{'c' * 40}@cache " + "y" * 50_000
        assert "canary" not in redactor.clipped(url)
    tail = redaction.STACK_CHARS_MAX // 2
    for shift in (*range(0, 20_000, 97), *range(40_000 - tail - 60, 40_000 - tail + 60)):
        stack = "x" * shift + f"\npassword=canary-{'c' * 40}\n" + "y" * (40_000 - shift)
        assert "canary" not in redactor.stack(stack)


class Vicious:
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


class ViciousMapping(UserDict[str, int]):
    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no items")


def _recursive() -> Any:
    one: dict[str, Any] = {}
    one["self"] = [one, {"again": one}]
    return one


def _deep() -> Any:
    found: Any = "x"
    for _ in range(5_000):
        found = [found]
    return found


AWKWARD = {
    "recursive": _recursive(),
    "deep": _deep(),
    "wide": {str(n): n for n in range(100_000)},
    "long": "x" * 10_000_000,
    "long and suspicious": "pass@" * 2_000_000,
    "long names": {"n" * 100_000: 1},
    "many long": ["y" * 10_000] * 10_000,
    "vicious": Vicious(),
    "vicious mapping": ViciousMapping(a=1),
    "vicious key": {Vicious(): 1},
    "huge integer": 10**6_000,
    "not a number": float("nan"),
    "bytes": b"\xff" * 10_000_000,
    "breaks": "a\r\nb\u2028c\x85d\x0be\x1b[31mf\x00g\x7f",
    "surrogate": "\ud800",
    "emoji": "\U0001f9ea" * 10_000,
}


@pytest.mark.parametrize("what", AWKWARD)
def test_whatever_it_is_it_is_one_short_line(what: str, lines: Any) -> None:
    structlog.get_logger("x").info("told", field=AWKWARD[what], after="kept")
    logging.getLogger("library").warning("told %s", "x", extra={"field": AWKWARD[what]})
    try:
        raise ValueError(AWKWARD[what])
    except ValueError:
        structlog.get_logger("x").exception("failed")
    told = lines()
    assert len(told) == 3
    assert all(len(line) < 1_000_000 for line in told)
    assert all(line.isascii() and line.isprintable() for line in told)


def test_a_line_that_cannot_be_made_is_one_line_too(lines: Any) -> None:
    record = logging.LogRecord("library", logging.WARNING, __file__, 1, "told %d", ("canary",), None)
    logging.getLogger().handlers[0].handle(record)  # alone: pytest's own would raise
    told = lines()
    assert len(told) == 1
    assert json.loads(told[0])["event"] == "log_failed"
    assert "canary" not in told[0]


def test_a_warning_is_a_line(lines: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging._warnings_showwarning = None  # type: ignore[attr-defined]  # pytest has put its own in between
        logging.captureWarnings(capture=True)
        warnings.warn("password=canary", stacklevel=1)
    [line] = lines()
    assert json.loads(line)["logger"] == "py.warnings"
    assert "canary" not in line


def test_who_dies_says_so_in_a_line(lines: Any) -> None:
    import sys
    import threading

    def die() -> None:
        raise ValueError("password=canary")

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()
    try:
        die()
    except ValueError:
        sys.excepthook(*sys.exc_info())
    told = [json.loads(line) for line in lines()]
    assert [line["event"] for line in told] == ["died", "died"]
    assert all("ValueError: password=…" in line["exception"] for line in told)


def test_on_a_terminal_nothing_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="pretty", secret_key=SETTINGS.secret_key))
    hostile = "\x1b[31mred\x1b]0;title\x07\u2028\x9b1m"
    structlog.get_logger("x").info(hostile, field=hostile, nested=[hostile], **{hostile: 1})
    try:
        password = "canary"  # the renderer's own stacks would show it
        raise ValueError(f"{hostile} token={JWT}")
    except ValueError:
        structlog.get_logger("x").exception("failed", password=password)
    text = capsys.readouterr().err
    assert "\x1b[31m" not in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", text)
    assert "Traceback" in text
    assert "ValueError" in text
    assert JWT not in text


def test_a_usual_line_costs_little() -> None:
    """Bounded, that is, in our own time of the processor, which a busy machine does not take away: the figures are
    taken by `python -m tests.adapters.test_redaction`, and lie a hundred times below."""
    redactor = Redactor(SETTINGS)
    assert _us(redactor, _usual()) < 1_000
    for value in AWKWARD.values():
        assert _us(redactor, {"field": value}, times=1) < 1_000_000


def _chars_looked_at(value: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a line with this value costs, on whatever machine."""
    chars = 0
    redacted = Redactor.text

    def counting(redactor: Redactor, text: str) -> str:
        nonlocal chars
        chars += len(text)
        return redacted(redactor, text[: redaction.TEXT_CHARS_MAX])

    with monkeypatch.context() as patch:
        patch.setattr(Redactor, "text", counting)
        Redactor(SETTINGS).plain({"field": value})
    return chars


@pytest.mark.parametrize("what", AWKWARD)
def test_of_whatever_it_is_little_is_looked_at(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _chars_looked_at(AWKWARD[what], monkeypatch) < 1_000_000


def test_without_the_cuts_all_of_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(Redactor, "clipped", lambda redactor, text, _: redactor.text(text))
    for what in ("long", "long and suspicious"):
        assert _chars_looked_at(AWKWARD[what], monkeypatch) >= 10_000_000


def _usual() -> dict[str, Any]:
    return {
        "event": "request",
        "method": "POST",
        "route": "/v1/jobs",
        "status": 201,
        "code": None,
        "duration_ms": 3.21,
        "actor": "user:0197f1d0-7d0a-7c55-8f2e-2f6f1f3e7a10",
        "position": 123456,
        "request_id": "0197f1d0-7d0a-7c55-8f2e-2f6f1f3e7a10",
        "correlation_id": "0197f1d0-7d0a-7c55-8f2e-2f6f1f3e7a10",
        "level": "info",
        "logger": "sightline.http",
        "timestamp": "2026-01-01T00:00:00.000000Z",
    }


def _us(redactor: Redactor, event: dict[str, Any], times: int = 500) -> float:
    started = time.thread_time()
    for _ in range(times):
        redactor.plain(event)
    return (time.thread_time() - started) / times * 1e6


if __name__ == "__main__":
    print(f"a usual line: {_us(Redactor(SETTINGS), _usual(), 20_000):.1f} µs")
    for what, value in AWKWARD.items():
        print(f"{what}: {_us(Redactor(SETTINGS), {'field': value}, 1):,.0f} µs")
