"""R9 at the door, with fewer keys than the run of duplicates.py."""

from pathlib import Path

from tests.conftest_log import LogDatabase
from tests.http import duplicates

from sightline.adapters.embedded.valkey import ValkeyServer

KEYS = 60


async def test_each_key_is_one_job(log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path) -> None:
    found = await duplicates.run(log_database, valkey_server.url, tmp_path, KEYS)
    assert found.is_exact, found
    assert found.duplicates["409 idempotency_key_in_use"] > 0  # they did come at once
    assert sum(found.duplicates.values()) == KEYS * duplicates.DUPLICATES


async def test_where_keys_say_nothing_it_is_seen(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    """The control."""
    found = await duplicates.run(
        log_database, valkey_server.url, tmp_path, KEYS // 10, code=duplicates.CODE_WITHOUT_KEYS
    )
    assert found.effects == KEYS // 10 * (duplicates.DUPLICATES + 2)
    assert found.keys_with_one_job == 0
    assert not found.is_exact
