"""Bundles of a log that lives: in part, with objects, while it grows, and of one that somebody was at."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from psycopg_pool import PoolClosed
from tests.conftest_log import LogDatabase
from tests.conftest_service import Service, open_service
from tests.projections.bundle.conftest import Exported, exported_from, note_of, sign
from tests.projections.bundle.unpacked import Unpacked, rows_of
from tests.projections.history import History

from sightline.adapters import postgres
from sightline.adapters.event_store.reader import LogHole
from sightline.adapters.notes import Signer
from sightline.adapters.settings import Settings
from sightline.commands import assets
from sightline.domain.kernel import Invalid
from sightline.projections.bundle import snapshot
from sightline.projections.bundle.export import NotSigned, prepared
from sightline.projections.bundle.format import BundleRefused
from sightline.projections.bundle.verify import Report, verify
from sightline.projections.sessions import SESSIONS
from sightline.workers import notary


def checked(settings: Settings, packed: bytes, witness: str | None = None) -> Report:
    return verify(io.BytesIO(packed), Signer.load(settings.data_dir / "keys").public_key, witness)


async def test_a_bundle_holds_what_the_database_holds(exported: Exported) -> None:
    report = checked(exported.settings, exported.packed, exported.witness)
    unpacked = Unpacked.of(exported.packed)
    with exported.database.connect() as connection:
        events = connection.execute(
            "SELECT position, stream_id, version, topic, data::text, metadata::text FROM events ORDER BY position"
        ).fetchall()
        assert [
            (
                line.position,
                line.stream_id,
                line.version,
                line.topic,
                bytes(line.data).decode(),
                bytes(line.metadata).decode(),
            )
            for line in unpacked.events
        ] == events
        checkpoints = connection.execute("SELECT note FROM notary_checkpoints ORDER BY tree_size").fetchall()
        assert [(one.note,) for one in unpacked.checkpoints] == checkpoints
        for name, rows in (report.content.rows or {}).items():
            assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (rows,)
            assert len(rows_of(unpacked, name)) == rows
    assert report.content.rows is not None
    assert sum(not rows for rows in report.content.rows.values()) <= 1, "the history came to nearly every kind of row"
    assert report.unsigned == 0
    assert len(events) == exported.last


async def test_a_part_of_the_log(exported: Exported) -> None:
    sizes = [one.tree_size for one in Unpacked.of(exported.packed).checkpoints]
    settings = exported.settings
    for first, last in (
        (1, sizes[2]),
        (2, None),
        (sizes[1] + 1, sizes[3]),
        (sizes[2], sizes[2] + 1),
        (sizes[-1], None),
    ):
        packed = await exported_from(settings, first=first, last=last)
        report = checked(settings, packed)
        wanted = last or exported.last
        assert report.manifest.first == first
        assert report.manifest.last == min(size for size in sizes if size >= wanted)
        assert report.content.rows is None
        assert report.manifest.read_models_absent
        if report.manifest.last >= exported.witnessed >= first - 1:
            assert checked(settings, packed, exported.witness).witnessed
        else:
            with pytest.raises(BundleRefused, match="witness"):
                checked(settings, packed, exported.witness)


async def test_positions_that_are_not_there(exported: Exported) -> None:
    for first, last in ((exported.last + 1, None), (1, exported.last + 1), (5, 4)):
        with pytest.raises(Invalid):
            await exported_from(exported.settings, first=first, last=last)


async def test_nobody_signed(service: Service) -> None:
    with pytest.raises(Invalid):
        await exported_from(service.settings)
    await service.session()
    with pytest.raises(NotSigned):
        async with prepared(service.services.store.pool, wait_s=0.1):
            pass
    await sign(service.settings)
    assert checked(service.settings, await exported_from(service.settings)).chain.signed == 1


async def test_while_the_service_runs(service: Service) -> None:
    """Bundles taken between appends, with projector and notary always somewhere else: each is whole and right."""
    history = History(service, seed=3)
    stopping = asyncio.Event()

    async def notarize() -> None:
        while not stopping.is_set():
            await sign(service.settings)

    async def write() -> None:
        for n in range(1_000):  # at least a dozen, and for as long as it takes the reader to see some of it
            await history.run(10)
            if n >= 11 and len(ends) > 3:
                return

    ends = set[tuple[int | None, int]]()
    notarizing, writing = asyncio.create_task(notarize()), asyncio.create_task(write())
    try:
        while not writing.done():
            if (await service.services.store.reader.head()).position:
                report = checked(service.settings, await exported_from(service.settings))
                ends.add((report.manifest.read_models_position, report.manifest.last))
            await asyncio.sleep(0)
    finally:
        stopping.set()
        await notarizing
    await writing
    assert len(ends) > 3


async def test_a_log_that_breaks_off_in_the_middle_is_no_bundle(exported: Exported) -> None:
    """The database goes away once the stream has begun."""
    received = bytearray()

    async def receive(stream: AsyncIterator[bytes]) -> None:
        async for part in stream:
            received.extend(part)

    async with postgres.pool(exported.settings.database_url) as pool, prepared(pool) as export:
        stream = export.stream()
        received += await anext(stream)
        await pool.close()
        with pytest.raises(PoolClosed):
            await receive(stream)
    assert received
    with pytest.raises(BundleRefused):
        checked(exported.settings, bytes(received))


async def test_rolled_back_and_signed_again_by_the_notary_itself(
    service_settings: Settings, log_database: LogDatabase
) -> None:
    """Whoever owns the database and the key can do that, and only the checkpoint kept elsewhere tells."""
    async with open_service(service_settings) as service:
        for _ in range(6):
            await service.session()
        await service.caught_up()
        witness = await note_of(service_settings, await sign(service_settings))
    with log_database.connect(superuser=True) as connection:
        for table in ("events", "receipts", "notary_checkpoints", "notary_tiles"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        connection.execute("DELETE FROM events WHERE position > 3; DELETE FROM notary_checkpoints")
        for model in snapshot.models().values():
            connection.execute(f"DELETE FROM {model.table}")
        connection.execute("DELETE FROM sessions_history_v1; UPDATE projection_checkpoints SET position = 0")
    notary.Kept.of(service_settings).path.unlink()
    async with open_service(service_settings) as service:
        for _ in range(4):
            await service.session()
        await service.caught_up()
        assert await sign(service_settings) == 7
    packed = await exported_from(service_settings)
    assert checked(service_settings, packed).chain.signed == 7, "without a witness it is missed"
    with pytest.raises(BundleRefused, match="the witness signs another log"):
        checked(service_settings, packed, witness)


async def test_objects(service: Service, tmp_path: Path) -> None:
    """Present, deleted, missing, damaged, and deleted once the bundle's events were over."""
    objects = service.services.objects
    kept, deleted, late = [await service.picture(tmp_path) for _ in range(3)]
    await service.run(assets.delete_asset, assets.DeleteAsset(asset_id=deleted))
    await objects.delete(assets.object_key(deleted))
    await service.caught_up()
    await sign(service.settings)
    whole = await exported_from(service.settings, objects=objects)
    found = checked(service.settings, whole).content
    assert (found.blobs, found.deleted, found.hashed, found.deleted_later) == (3, 1, 1, 0)  # one picture, thrice

    # Another picture, whose bytes are of its own.
    other = hashlib.sha256(b"other").hexdigest()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"other"

    async def stored() -> None:
        await objects.put(
            assets.object_key(late), chunks(), content_type="image/png", size_bytes_max=5, if_absent=False
        )

    late = await service.asset(Unpacked.of(whole).manifest.epoch, sha256=other, size_bytes=5)
    await service.caught_up()
    await sign(service.settings)
    with pytest.raises(BundleRefused, match="neither there nor deleted"):
        checked(service.settings, await exported_from(service.settings, objects=objects))
    assert checked(service.settings, await exported_from(service.settings)).content.blobs == 4, (
        "without bytes it is right"
    )
    await stored()
    assert checked(service.settings, await exported_from(service.settings, objects=objects)).content.hashed == 2

    # Deleted while its bundle was written, after the last event in it.
    async with prepared(service.services.store.pool, objects=objects) as export:
        await service.run(assets.delete_asset, assets.DeleteAsset(asset_id=late))
        await objects.delete(assets.object_key(late))
        packed = b"".join([part async for part in export.stream()])
    assert checked(service.settings, packed).content.deleted_later == 1
    assert kept


async def test_an_object_whose_bytes_are_others(service: Service, tmp_path: Path) -> None:
    await service.picture(tmp_path)
    await service.caught_up()
    await sign(service.settings)
    packed = await exported_from(service.settings, objects=service.services.objects)
    honest = Unpacked.of(packed)
    (name,) = [name for name in honest.others if name.startswith("blobs/")]
    honest.others[name] = honest.others[name] + b"!"
    with pytest.raises(BundleRefused, match="damaged"):
        checked(service.settings, honest.packed())
    del honest.others[name]
    with pytest.raises(BundleRefused, match="neither there nor deleted"):
        checked(service.settings, honest.packed())


SWAPPED = (
    "UPDATE events SET position = -1 WHERE position = {at};"
    " UPDATE events SET position = {at} WHERE position = {at} + 1;"
    " UPDATE events SET position = {at} + 1 WHERE position = -1"
)
TAMPERINGS = (
    "UPDATE events SET data = replace(data::text, 'ada', 'eve')::json WHERE position = {at}",
    "UPDATE events SET data = (' ' || data::text)::json WHERE position = {at}",
    "UPDATE events SET metadata = replace(metadata::text, 'actor', 'victor')::json WHERE position = {at}",
    "UPDATE events SET recorded_at = recorded_at + interval '1 microsecond' WHERE position = {at}",
    "UPDATE events SET stream_id = gen_random_uuid() WHERE position = {at}",
    "DELETE FROM events WHERE position = {at}",
    "DELETE FROM events WHERE position >= {at}",
    SWAPPED,
)


@pytest.mark.parametrize("tampering", TAMPERINGS)
async def test_a_superuser_who_changes_the_log_is_found_out(
    service_settings: Settings, log_database: LogDatabase, tampering: str
) -> None:
    async with open_service(service_settings) as service:
        for _ in range(6):
            await service.session()
        await service.caught_up()
        size = await sign(service_settings)
    witness = await note_of(service_settings, size)
    packed = await exported_from(service_settings)
    assert checked(service_settings, packed, witness).witnessed, "before, all was right"
    with log_database.connect(superuser=True) as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        connection.execute("ALTER TABLE events DROP CONSTRAINT position_from_one")
        connection.execute(tampering.format(at=4))
    with pytest.raises((BundleRefused, LogHole)):
        checked(service_settings, await exported_from(service_settings), witness)


async def test_rows_that_somebody_changed(service_settings: Settings, log_database: LogDatabase) -> None:
    async with open_service(service_settings) as service:
        await service.session()
        await service.caught_up()
        await sign(service_settings)
    with log_database.connect() as connection:
        connection.execute(f"UPDATE {SESSIONS.table} SET owner = 'eve'")
    with pytest.raises(BundleRefused, match=r"read_models/sessions\.ndjson, line 1"):
        checked(service_settings, await exported_from(service_settings))
    with log_database.connect() as connection:
        connection.execute(f"DELETE FROM {SESSIONS.table}")
    with pytest.raises(BundleRefused, match=r"read_models/sessions\.ndjson has 0 rows"):
        checked(service_settings, await exported_from(service_settings))
