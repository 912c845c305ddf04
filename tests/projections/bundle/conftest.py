"""One log, signed for now and then while it grew, and its bundle."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import redis
from msgspec import Struct
from tests.conftest_log import LogDatabase, database
from tests.conftest_service import open_service, short_lived
from tests.projections.history import History

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.notes import Signer
from sightline.adapters.objects.port import ObjectStore
from sightline.adapters.settings import Settings
from sightline.projections.bundle.export import prepared
from sightline.workers import notary

STEPS = 70  # of a random history, between two checkpoints
CHECKPOINTS = 8


class Exported(Struct, frozen=True):
    """Attributes:
    witness: an earlier checkpoint, kept outside; `witnessed` is its size.
    last: the bundle's last position.
    """

    packed: bytes
    signer: Signer
    witness: str
    witnessed: int
    last: int
    database: LogDatabase
    settings: Settings

    @property
    def public_key(self) -> str:
        return self.signer.public_key


async def sign(settings: Settings) -> int:
    """Let a notary sign for all that is in the log now; up to which position it then did."""
    async with await postgres.connect(settings.database_url) as connection:
        signer = Signer.load(settings.data_dir / "keys")
        opened = await notary.open_notary(connection, signer, notary.Kept.of(settings))
        while await opened.step():
            pass
        return opened.size


async def exported_from(
    settings: Settings, *, first: int = 1, last: int | None = None, objects: ObjectStore | None = None
) -> bytes:
    async with (
        postgres.pool(settings.database_url) as pool,
        prepared(pool, first=first, last=last, objects=objects) as export,
    ):
        return b"".join([part async for part in export.stream()])


async def note_of(settings: Settings, size: int) -> str:
    async with await postgres.connect(settings.database_url) as connection:
        cursor = await connection.execute("SELECT note FROM notary_checkpoints WHERE tree_size = %s", (size,))
        row = await cursor.fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture(scope="module")
def bundle_database(postgres_server: PostgresServer, log_template: str) -> Iterator[LogDatabase]:
    with database(postgres_server, "bundle", log_template) as made:
        yield made


@pytest.fixture(scope="module")
def bundle_settings(
    bundle_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    with redis.Redis.from_url(valkey_server.url) as valkey:
        valkey.flushall()
    return short_lived(bundle_database.dsn, valkey_server.url, tmp_path_factory.mktemp("bundle"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exported(bundle_database: LogDatabase, bundle_settings: Settings) -> AsyncIterator[Exported]:
    sizes = []
    async with open_service(bundle_settings) as service:
        history = History(service, seed=7)
        for _ in range(CHECKPOINTS):
            await history.run(STEPS)
            sizes.append(await sign(bundle_settings))
        await service.caught_up()
    witnessed = sizes[-2]
    packed = await exported_from(bundle_settings)
    yield Exported(
        packed,
        Signer.load(bundle_settings.data_dir / "keys"),
        await note_of(bundle_settings, witnessed),
        witnessed,
        sizes[-1],
        bundle_database,
        bundle_settings,
    )
