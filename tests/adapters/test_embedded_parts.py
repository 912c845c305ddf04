"""What the settings leave open is started, once per data directory, and ends with whoever started it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis
from tests.conftest_parts import is_running, wait_for

from sightline.adapters import settings
from sightline.adapters.embedded.part import PartBusy, PartError
from sightline.adapters.embedded.parts import Parts
from sightline.adapters.settings import Settings

HOLDER = """
import pathlib, sys
from sightline.adapters.embedded.parts import Parts
from sightline.adapters.settings import Settings
parts = Parts(Settings(data_dir=pathlib.Path(sys.argv[1])))
with parts:
    print(*(part.pid for part in parts.owned), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sightline-tests-") as directory:
        yield Path(directory)


@contextmanager
def holder(data_dir: Path) -> "Iterator[tuple[subprocess.Popen[str], list[int]]]":
    """Another process that has the parts; with the pids of those that it owns. Leaves when its stdin ends."""
    run = [sys.executable, "-c", HOLDER, str(data_dir)]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, [int(pid) for pid in process.stdout.readline().split()]


def serves(found: Settings) -> bool:
    with psycopg.connect(found.database_direct_url) as connection, redis.from_url(found.redis_url) as client:
        return connection.execute("SELECT 1").fetchone() == (1,) and bool(client.ping())


def test_settings_are_filled_in_and_survive_the_environment(data_dir: Path) -> None:
    parts = Parts(Settings(data_dir=data_dir, port=1234))
    with parts as found:
        assert serves(found)
        assert found.port == 1234
        assert settings.read(parts.environ, port=1234) == found
        pids = [part.pid for part in parts.owned]
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids if pid)
    parts.stop()


def test_what_is_elsewhere_is_not_started(tmp_path: Path) -> None:
    given = Settings(data_dir=tmp_path, database_url="postgresql://db.example/x", redis_url="redis://cache.example")
    with Parts(given) as found:
        assert (found.database_url, found.redis_url) == (given.database_url, given.redis_url)
        assert found.database_direct_url == given.database_url
        assert list(tmp_path.iterdir()) == []
    pooled = Settings(
        database_url="postgresql://pooler/x", database_direct_url="postgresql://db/x", redis_url="redis://c"
    )
    assert Parts(pooled).settings.database_direct_url == "postgresql://db/x"


def test_a_guest_uses_the_parts_and_leaves_them(data_dir: Path) -> None:
    with holder(data_dir) as (owner, pids):
        guest = Parts(Settings(data_dir=data_dir))
        with guest as found:
            assert guest.owned == ()
            assert serves(found)
        assert all(is_running(pid) for pid in pids)
        owner.communicate(timeout=60)
    assert owner.returncode == 0
    assert not any(is_running(pid) for pid in pids)


def test_a_supervisor_waits_for_a_leaving_owner_and_never_attaches(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.adapters.embedded.parts.TAKE_OVER_S", 0.2)
    with holder(data_dir) as (owner, _):
        with pytest.raises(PartBusy, match=f"process {owner.pid}"):
            Parts(Settings(data_dir=data_dir), attach=False).start()
        monkeypatch.undo()
        assert owner.stdin
        owner.stdin.close()  # It is asked to leave, and has not left yet.
        parts = Parts(Settings(data_dir=data_dir), attach=False)
        with parts as found:
            assert len(parts.owned) == 2
            assert serves(found)


def test_of_starters_at_once_one_owns_each_part(data_dir: Path) -> None:
    run = [sys.executable, "-c", HOLDER, str(data_dir)]
    starters = [subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        owned = [starter.stdout.readline().split() for starter in starters if starter.stdout]
        assert sum(len(pids) for pids in owned) == 2
    finally:
        for starter in sorted(starters, key=lambda one: one.pid):
            starter.communicate(timeout=60)
    assert [starter.returncode for starter in starters] == [0] * 4


def test_a_killed_owner_leaves_no_server_and_no_hindrance(data_dir: Path) -> None:
    with holder(data_dir) as (owner, pids):
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
        owner.kill()
        owner.wait()
        with Parts(Settings(data_dir=data_dir)) as found:  # At once: the old servers may be on their way out.
            assert serves(found)
        wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_a_part_that_fails_takes_the_others_down(data_dir: Path) -> None:
    parts = Parts(Settings(data_dir=data_dir))
    assert parts.postgres
    assert parts.valkey
    parts.valkey.home.chmod(0o700)
    (parts.valkey.home / "owner.lock").unlink()
    (parts.valkey.home / "owner.lock").mkdir()
    try:
        with pytest.raises(PartError, match="cannot be used"):
            parts.start()
        assert parts.owned == ()
        assert parts.postgres.pid is None
    finally:
        (parts.valkey.home / "owner.lock").rmdir()


def test_an_unwritable_directory_is_said_so(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        data_dir = Path("/proc/sightline")  # Where even root cannot make one.
    else:
        tmp_path.chmod(0o500)
        data_dir = tmp_path / "below"
    with pytest.raises(PartError, match="cannot be used by user"):
        Parts(Settings(data_dir=data_dir)).start()
