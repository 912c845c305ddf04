"""One door per module: its tests share a database, and tell their own things apart by ids."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.conftest_log import LogDatabase, database
from tests.http.door import Door, opened, settings_for
from tests.http.identity import SECRET

from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def door_database(postgres_server: PostgresServer, log_template: str) -> Iterator[LogDatabase]:
    with database(postgres_server, f"door_{next(_numbers)}", log_template) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(
    door_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    directory: Path = tmp_path_factory.mktemp("door")
    async with opened(settings_for(door_database, valkey_server.url, directory)) as door:
        yield door


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secured_door(
    door_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    """A door with authentication, and without limits, which are tested by themselves."""
    directory: Path = tmp_path_factory.mktemp("door")
    settings = settings_for(
        door_database, valkey_server.url, directory, auth_enabled=True, secret_key=SECRET, rate_limits_enabled=False
    )
    async with opened(settings) as door:
        yield door
