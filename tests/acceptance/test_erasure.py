"""A person is erased: nothing of the name is left, a restored backup forgets it again, and the log is the same.

A canary goes in through the API of a real service. Every byte that the database keeps is then searched for it: dumps,
heap, WAL, logs. The control is the same search where sealing is off.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import psycopg
import pytest
from msgspec import Struct
from msgspec.structs import replace
from tests.conftest_parts import wait_for
from tests.conftest_service import Processes, by, short_lived
from tests.conftest_up import free_port

from sightline.adapters import postgres
from sightline.adapters.embedded.binaries import postgres_program
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.event_store.leaf import leaf
from sightline.adapters.event_store.store import open_event_store
from sightline.adapters.ids import uuid7
from sightline.adapters.sealing_keys import VaultLocked
from sightline.adapters.settings import Settings
from sightline.adapters.vault import Vault
from sightline.commands import sessions
from sightline.commands.transact import Commands
from sightline.domain.events import EVENTS
from sightline.domain.sealed import Sealed
from sightline.domain.sessions import SessionCreated

CHUNK_BYTES = 1 << 22


def spellings(text: str) -> dict[str, bytes]:
    """What a name may hide as."""
    raw = text.encode()
    return {
        "plain": raw,
        "utf-16": text.encode("utf-16-le"),
        "hex": raw.hex().encode(),
        "base64": base64.b64encode(raw)[: len(raw) // 3 * 4],
        "sha-256": hashlib.sha256(raw).hexdigest().encode(),
        "sha-256 as bytes": hashlib.sha256(raw).digest(),
        "hmac without a secret": hmac.digest(b"", raw, hashlib.sha256),
    }


def hits(text: str, *places: Path) -> set[str]:
    """Where a name is found, in any spelling: files, and all files under directories."""
    wanted = spellings(text)
    overlap = max(map(len, wanted.values()))
    found = set()
    for place in places:
        for path in [place] if place.is_file() else [one for one in place.rglob("*") if one.is_file()]:
            with path.open("rb") as file:
                before = b""
                while block := file.read(CHUNK_BYTES):
                    seen = before + block
                    found |= {
                        f"{path.relative_to(place.parent)}: {name}" for name, one in wanted.items() if one in seen
                    }
                    before = seen[-overlap:]
    return found


class Log(Struct, frozen=True):
    """What a Merkle tree over the log rests on."""

    events: list[tuple[Any, ...]]
    leaves: list[bytes]


def log_of(dsn: str) -> Log:
    with psycopg.connect(dsn) as connection:
        postgres.adapt(connection)
        events = connection.execute(
            "SELECT position, stream_id, version, topic, metadata, data, recorded_at FROM events ORDER BY position"
        ).fetchall()
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    leaves = [
        leaf(position, stream, version, topic, metadata, data, (at - epoch) // (datetime.resolution))
        for position, stream, version, topic, metadata, data, at in events
    ]
    return Log(events, leaves)


class Story(Struct):
    """What happened, and what is left to look at."""

    settings: Settings
    server: PostgresServer
    directory: Path
    backup: Path
    canary: str
    subject: UUID
    before: Log
    after: Log
    answers: dict[str, httpx.Response]
    printed: str

    def sightline(self, *words: str, dsn: str = "", stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return sightline(replace(self.settings, database_url=dsn or self.settings.database_url), *words, stdin=stdin)


def sightline(settings: Settings, *words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    names = ("data_dir", "database_url", "redis_url")
    environ = {f"SIGHTLINE_{name.upper()}": str(getattr(settings, name)) for name in names}
    return subprocess.run(
        [sys.executable, "-m", "sightline", *words],
        env={**os.environ, **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("server")) as started:
        postgres.migrate(started.dsn)
        yield started


@pytest.fixture(scope="module")
def story(
    server: PostgresServer, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    directory = tmp_path_factory.mktemp("erasure")
    settings = short_lived(server.dsn, valkey_server.url, directory / "service")
    processes = Processes(settings, directory)
    canary = f"canary-{secrets.token_hex(12)}@example.com"
    try:
        yield told(settings, server, processes, directory, canary)
    finally:
        processes.stop()


def told(settings: Settings, server: PostgresServer, processes: Processes, directory: Path, canary: str) -> Story:
    port = free_port()
    for command, changed in (("serve", {"port": port}), ("project", {})):
        processes.start(command, **changed)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1/sessions", timeout=300) as client:
        wait_for(lambda: answers(client), 30)
        key = {"Idempotency-Key": "once"}
        made = client.post("", json={"user_id": canary}, headers=key)
        client.post("", json={"user_id": canary})
        client.post("", json={"user_id": "somebody else"})
        for refused in ({"user_id": canary * 9}, {"user_id": canary, "unknown": 1}, {"user_id": [canary]}):
            assert client.post("", json=refused).status_code == 422
        one = f"/{made.json()['id']}"
        fresh = {"Min-Position": made.headers["Event-Position"], "Prefer": "wait=10"}
        answered = {"made": made, "before": client.get(one, headers=fresh)}
        backup = base_backup(server, directory / "backup")
        before = log_of(server.dsn)
        erased = sightline(settings, "people", "erase", "-", stdin=f"{canary}\n")
        assert erased.returncode == 0, erased.stderr
        for name, path in (("after", one), ("as of", f"{one}?at=1000"), ("list", ""), ("history", f"{one}/history")):
            answered[name] = client.get(path)
        answered["repeat"] = client.post("", json={"user_id": canary}, headers=key)
        answered["closed"] = client.post(f"{one}/close")
    with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    subject = UUID(answered["history"].json()["state"]["user_id"]["subject"])
    after = log_of(server.dsn)
    return Story(settings, server, directory, backup, canary, subject, before, after, answered, erased.stdout)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("").status_code == 200
    except httpx.TransportError:
        return False


def base_backup(server: PostgresServer, home: Path) -> Path:
    """Where a server can be started on: a copy of the whole cluster, its WAL included."""
    data = home / "postgres" / "data"
    data.parent.mkdir(parents=True)
    words: list[str | Path] = [
        "--pgdata",
        data,
        "--dbname",
        server.superuser_dsn,
        "--checkpoint=fast",
        "--wal-method=fetch",
    ]
    subprocess.run([postgres_program("pg_basebackup"), *words], check=True, timeout=300)
    return home


# What a client sees


def test_the_person_was_there_and_is_not_any_more(story: Story) -> None:
    seen = {name: answer.json() for name, answer in story.answers.items()}
    assert [seen[name]["user_id"] for name in ("made", "before")] == [story.canary] * 2
    assert [seen[name]["user_id"] for name in ("after", "as of", "repeat", "closed")] == [None] * 4
    assert [one["user_id"] for one in seen["list"]["items"]] == [None, None, "somebody else"]
    assert seen["repeat"]["id"] == seen["made"]["id"]
    assert story.answers["repeat"].status_code == 201
    assert story.canary not in story.printed
    assert str(story.subject) in story.printed


def test_history_keeps_what_was_sealed(story: Story) -> None:
    history = story.answers["history"].json()
    assert history["state"]["user_id"] == history["items"][0]["data"]["user_id"]
    assert history["items"][0]["type"] == "session.created.2"


# What is left


def test_no_trace_of_the_name_is_left(story: Story, tmp_path: Path) -> None:
    dump = tmp_path / "dump.sql"
    words: list[str | Path] = [
        "--dbname",
        story.server.superuser_dsn.replace("/postgres?", "/sightline?"),
        "--file",
        dump,
    ]
    subprocess.run([postgres_program("pg_dump"), *words], check=True, timeout=300)
    assert "session.created.2" in dump.read_text()
    logs = list(story.directory.glob("process-*.log"))
    assert len(logs) == 2
    assert all("request" in log.read_text() or "worker_ready" in log.read_text() for log in logs)
    places = [dump, *logs, story.server.log_path, story.server.data, story.settings.data_dir, story.backup]
    assert hits(story.canary, *places) == set()


def test_the_log_is_what_it_was(story: Story) -> None:
    number = len(story.before.events)
    assert number >= 3
    assert story.after.events[:number] == story.before.events
    assert story.after.leaves[:number] == story.before.leaves


def test_whoever_guesses_the_name_finds_nothing(story: Story) -> None:
    again = story.sightline("people", "erase", story.canary)
    assert (again.returncode, again.stdout) == (0, "Nothing is sealed for this person.\n")
    listed = (story.settings.data_dir / "keys" / "erasures.jsonl").read_text().splitlines()
    assert [UUID(line.partition('"subject":"')[2][:36]) for line in listed] == [story.subject]


class Plain(Vault):
    """The control: sealing is off."""

    async def seal(self, field: str, *, person: str, text: str) -> Sealed:
        return Sealed(None, text)


async def test_where_sealing_is_off_the_name_is_everywhere(story: Story) -> None:
    canary = f"control-{secrets.token_hex(12)}"
    dsn = story.settings.database_url
    async with vault(dsn, story.settings, Plain) as plain, open_event_store(dsn, EVENTS) as store:
        create = sessions.CreateSession(session_id=uuid7(), user_id=canary, duration_s=60)
        receipt = await Commands(store, None, plain).execute(sessions.create_session, create, by())
        assert receipt.version == 1
    with psycopg.connect(story.server.superuser_dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    found = await asyncio.to_thread(hits, canary, story.server.data)
    assert any(place.startswith("data/pg_wal/") for place in found)
    assert any(place.startswith("data/base/") for place in found)
    assert {place.rpartition(": ")[2] for place in found} == {"plain"}


# The person comes back


async def test_whoever_comes_back_is_somebody_else(story: Story) -> None:
    async with vault(story.settings.database_url, story.settings) as ours:
        assert await ours.subject_of(story.canary) is None
        sealed = await ours.seal(sessions.USER_ID, person=story.canary, text=story.canary)
        assert sealed.subject not in {None, story.subject}
        assert sealed.subject is not None
        await ours.erase([sealed.subject])


# A backup from before the erasure


@contextlib.asynccontextmanager
async def vault(dsn: str, settings: Settings, kind: type[Vault] = Vault) -> AsyncIterator[Vault]:
    async with postgres.pool(dsn) as pool:
        yield kind.of(pool, settings)


async def opened(dsn: str, story: Story, settings: Settings | None = None) -> list[str | None]:
    """What the boxes in the log's session events hold for whoever has the vault."""
    events = [event for event in log_of(dsn).events if event[3] == "session.created.2"]
    async with vault(dsn, settings or story.settings) as ours:
        told = [msgspec.json.decode(event[5], type=SessionCreated) for event in events]
        sealed = [one.user_id for one in told if one.user_id is not None and one.user_id.subject is not None]
        return await ours.open_many(sessions.USER_ID, sealed)


async def test_a_restored_backup_forgets_the_person_again(story: Story) -> None:
    with PostgresServer(story.backup) as restored:
        # The control: the backup has the key, and without the list the person would be back.
        assert await opened(restored.dsn, story) == [story.canary, story.canary, "somebody else"]
        for erased in (1, 0):
            replayed = story.sightline("people", "replay-erasures", dsn=restored.dsn)
            assert replayed.returncode == 0, replayed.stderr
            assert replayed.stdout == f"1 on the list, {erased} were back and are erased again.\n"
            assert await opened(restored.dsn, story) == [None, None, "somebody else"]
        assert log_of(restored.dsn).leaves == story.before.leaves
        assert hits(story.canary, restored.data) == set()


async def test_after_a_rotation_no_copy_of_the_key_is_worth_anything(story: Story) -> None:
    """A deleted row's bytes stay in old heap pages, WAL and backups; they are wrapped by a key that is no more."""
    rotated = story.sightline("people", "rotate-key")
    assert (rotated.returncode, rotated.stdout) == (0, "1 keys are wrapped by the new sealing key.\n"), rotated.stderr
    assert await opened(story.settings.database_url, story) == [None, None, "somebody else"]
    with PostgresServer(story.backup) as restored:
        with pytest.raises(VaultLocked):
            await opened(restored.dsn, story)
        refused = story.sightline("people", "erase", "x", dsn=restored.dsn)
        assert (refused.returncode, "sealed with another key" in refused.stderr) == (1, True)
