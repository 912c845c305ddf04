"""docs/how-to/rotate-keys.md, step by step: nobody is turned away by a rotation, and the old key is gone at its end."""

import base64
import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from msgspec.structs import replace
from tests.conftest_log import LogDatabase
from tests.http.door import picture
from tests.http.process import started

from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.notes import NoteRefused, Signer, read_public_keys, verify_checkpoint
from sightline.adapters.settings import Settings
from sightline.adapters.tokens import Tokens
from sightline.domain.access import NotAuthenticated

OLD, NEW = "old-" + "o" * 40, "new-" + "n" * 40


def _sightline(given: dict[str, str], directory: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environ = {f"SIGHTLINE_{name.upper()}": value for name, value in given.items()}
    return subprocess.run(
        [sys.executable, "-m", "sightline", *command, "--data-dir", str(directory)],
        env={**environ, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def given(log_database: LogDatabase, valkey_server: ValkeyServer) -> dict[str, str]:
    return {"database_url": log_database.dsn, "redis_url": valkey_server.url}


def test_tokens() -> None:
    user_id = uuid4()

    def tokens(secret_key: str) -> Tokens:
        return Tokens.of(Settings(secret_key=secret_key), b"f" * 32)

    before, _ = tokens(OLD).issue(user_id, 1)
    behind, _ = tokens(f"{OLD},{NEW}").issue(user_id, 1)
    after, _ = tokens(f"{NEW},{OLD}").issue(user_id, 1)
    for step in (f"{OLD},{NEW}", f"{NEW},{OLD}"):
        for token in (before, behind, after):
            assert tokens(step).verify(token).user_id == user_id
    assert tokens(OLD).verify(behind).user_id == user_id  # a node that was not started again yet
    assert tokens(NEW).verify(after).user_id == user_id
    for token in (before, behind):
        with pytest.raises(NotAuthenticated):
            tokens(NEW).verify(token)
    with pytest.raises(NotAuthenticated):  # the control: the step that puts it behind is needed
        tokens(OLD).verify(after)


def _submit(url: str, key: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/v1/jobs", json=body, headers={"Idempotency-Key": key}, timeout=60)


def test_repeated_requests(given: dict[str, str], tmp_path: Path) -> None:
    """On another node, too, whose data directory is its own; and whatever becomes of the directory store's key."""
    given |= {"sealing_key": base64.b64encode(secrets.token_bytes(32)).decode()}  # which nodes share, too
    key, body, other = str(uuid4()), {"kind": "noop"}, {"kind": "noop", "priority": 1}
    with started(tmp_path / "one", secret_key=OLD, **given) as running:
        first = _submit(running.url, key, body)
        assert first.status_code == 201
    assert _sightline(given, tmp_path / "one", "keys", "rotate", "objects").returncode == 0
    for node, listed in (("one", f"{OLD},{NEW}"), ("two", f"{NEW},{OLD}")):
        with started(tmp_path / node, secret_key=listed, **given) as running:
            again = _submit(running.url, key, body)
            assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
            assert _submit(running.url, key, other).json()["code"] == "idempotency_key_reused"
    with started(tmp_path / "two", secret_key=NEW, **given) as running:  # the control: too early, and nothing is done
        assert _submit(running.url, key, body).json()["code"] == "idempotency_key_reused"


def test_signed_urls(given: dict[str, str], tmp_path: Path) -> None:
    data = picture()
    asked = {"filename": "a.png", "content_type": "image/png", "size_bytes": len(data)}
    directory = tmp_path / "data"

    def announced(url: str) -> dict[str, Any]:
        grant: dict[str, Any] = httpx.post(f"{url}/v1/assets", json=asked, timeout=60).json()["upload"]
        return grant

    def brought(url: str, grant: dict[str, Any]) -> int:
        path = grant["url"].partition("/objects/")[2]
        return httpx.put(f"{url}/objects/{path}", headers=grant["headers"], content=data, timeout=60).status_code

    with started(directory, **given) as running:
        first, second = announced(running.url), announced(running.url)
    rotated = _sightline(given, directory, "keys", "rotate", "objects")
    assert (rotated.returncode, rotated.stdout.count("\n")) == (0, 1)
    with started(directory, **given) as running:
        assert brought(running.url, first) == 201
        assert brought(running.url, announced(running.url)) == 201
    soon = _sightline(given, directory, "keys", "rotate", "objects")
    assert (soon.returncode, soon.stderr.count("\n")) == (1, 1)
    assert "still in use" in soon.stderr
    short = given | {"upload_url_expires_s": "0"}  # as if that time were over
    assert _sightline(short, directory, "keys", "rotate", "objects").returncode == 0
    with started(directory, **given) as running:
        assert brought(running.url, second) == 403


def test_the_notary(tmp_path: Path) -> None:
    before = Signer.load(tmp_path)
    signed = before.sign_checkpoint(before.origin, 1, b"r" * 32)
    (tmp_path / "notary.key").rename(tmp_path / "old.key")
    after = Signer.load(tmp_path)
    public_keys = read_public_keys(tmp_path)
    assert after.origin == before.origin
    assert public_keys.split() == [after.public_key, before.public_key]
    later = after.sign_checkpoint(after.origin, 2, b"s" * 32)
    assert [verify_checkpoint(note, public_keys).tree_size for note in (signed, later)] == [1, 2]
    with pytest.raises(NoteRefused):  # the control: the old line alone does not do
        verify_checkpoint(later, before.public_key)


def test_peoples_data(given: dict[str, str], tmp_path: Path) -> None:
    directory = tmp_path / "data"
    key_path = directory / "keys" / "sealing.key"

    def person(url: str, session_id: str) -> str | None:
        answer = httpx.get(f"{url}/v1/sessions/{session_id}?at=9999999", timeout=60)  # by the log: nobody projects here
        user_id: str | None = answer.json()["user_id"]
        return user_id

    with started(directory, **given) as running:
        made = httpx.post(f"{running.url}/v1/sessions", json={"user_id": "ada"}, timeout=60).json()
        before = key_path.read_bytes()
        rotated = _sightline(given, directory, "people", "rotate-key")
        assert (rotated.returncode, rotated.stdout.count("\n")) == (0, 1), rotated.stderr
        assert person(running.url, made["id"]) == "ada"  # the process runs on
    assert key_path.read_bytes() != before
    assert not key_path.with_name("sealing.previous.key").exists()
    with started(directory, **given) as running:
        assert person(running.url, made["id"]) == "ada"
    key_path.write_bytes(secrets.token_bytes(32))
    control = pytest.raises(pytest.fail.Exception, match="sealed with another key")
    with control, started(directory, **given):
        pass


def test_no_secret_is_shown_while_they_change(given: dict[str, str], tmp_path: Path) -> None:
    with started(tmp_path / "data", secret_key=f"{NEW},{OLD}", **given) as running:
        said = next(line for line in running.lines() if line["event"] == "settings")
        text = running.log.read_text()
    assert said["secret_key"] == "…"
    assert OLD not in text
    assert NEW not in text
    assert OLD not in json.dumps(replace(Settings(), secret_key=OLD).redacted())
