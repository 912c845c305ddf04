"""The tree of a real log: leaves are hashed as they are defined, tiles hold what a fresh tree would, proofs verify."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from tests.conftest_log import LogDatabase

from sightline.adapters import postgres
from sightline.adapters.event_store import tree as trees
from sightline.adapters.event_store.leaf import hash_of, leaf, microseconds
from sightline.adapters.event_store.reader import LogHole, read_page
from sightline.adapters.event_store.tree import TileReader, Tree, TreeDamaged, leaf_hashes
from sightline.domain import merkle

STREAM = UUID("00112233-4455-6677-8899-aabbccddeeff")
EVENTS = 256 * 3 + 70
ODD_TEXTS = [
    "",
    "plain",
    'quote " backslash \\ slash / tab \t newline \n',
    "Grüße, 世界, 🦀, \u0301 combining, \u202e turned",
    "\\u0041 stays as it was written",
    "long " * 40_000,
]
ODD_TIMES = [
    datetime(2026, 7, 1, 12, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 7, 1, 12, 0, 0, 999_999, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(1999, 12, 31, 23, 59, 59, 123_456, tzinfo=UTC),
    datetime(2000, 3, 26, 2, 30, tzinfo=UTC),  # an hour that summer time skips in places
    datetime(9999, 12, 30, 23, 59, 59, 999_999, tzinfo=UTC),
]

INSERT = "INSERT INTO events (position, stream_id, version, topic, data, metadata, recorded_at) VALUES "


@pytest.fixture
def odd_log(log_database: LogDatabase) -> LogDatabase:
    with log_database.connect(superuser=True) as connection:
        for n, text in enumerate(ODD_TEXTS, 1):
            connection.execute(
                INSERT + "(%s, %s, %s, %s, %s, %s, %s)",
                (
                    n,
                    uuid4(),
                    2**63 - n,
                    f"odd.{text[:9]}",
                    '{ "type" :"odd",\t"é":' + json.dumps(text, ensure_ascii=bool(n % 2)) + ',"n":1.50}',
                    json.dumps({"actor": text}),
                    ODD_TIMES[n - 1],
                ),
            )
    return log_database


@pytest.fixture(scope="module")
def hashes() -> list[bytes]:
    return [merkle.leaf_hash(n.to_bytes(4, "big")) for n in range(70_000)]


@pytest.fixture
def long_log(log_database: LogDatabase) -> LogDatabase:
    with log_database.connect(superuser=True) as connection:
        connection.execute(
            INSERT.removesuffix("VALUES ") + "SELECT n, gen_random_uuid(), 1, 'session.closed', '{\"type\":\"x\"}',"
            " json_build_object('n', n), '2026-01-01Z'::timestamptz + n * interval '1 us'"
            " FROM generate_series(1, %s) AS n",
            (EVENTS,),
        )
    return log_database


async def opened(database: LogDatabase) -> psycopg.AsyncConnection:
    return await postgres.connect(database.dsn)


async def grown(connection: psycopg.AsyncConnection, size: int) -> Tree:
    """A tree over the log, its tiles stored, in uneven pieces."""
    tree = Tree()
    for until in (1, 255, 256, 257, 700, size):
        if tree.size < until <= size:
            tiles = tree.extend(await leaf_hashes(connection, after=tree.size, until=until))
            async with connection.cursor() as cursor:
                await cursor.executemany(
                    "INSERT INTO notary_tiles (level, index, root, hashes) VALUES (%s, %s, %s, %s)",
                    [(one.level, one.index, one.root, one.hashes) for one in tiles],
                )
    return tree


def test_a_leaf_is_every_field_behind_its_length() -> None:
    found = leaf(1, STREAM, 2, "é", b"{}", b"[1]", 1_000_001)
    assert found.hex() == (
        "00000008" "0000000000000001"
        "00000010" "00112233445566778899aabbccddeeff"
        "00000008" "0000000000000002"
        "00000002" "c3a9"
        "00000002" "7b7d"
        "00000003" "5b315d"
        "00000008" "00000000000f4241"
    )  # fmt: skip
    assert microseconds(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=1, microseconds=1)) == 1_000_001


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
async def test_the_database_sends_leaves_as_they_are_defined(odd_log: LogDatabase, zone: str) -> None:
    async with await opened(odd_log) as connection:
        await connection.execute(f"SET timezone TO '{zone}'".encode())
        recorded = await read_page(connection, after=0, limit=100)
        assert len(recorded) == len(ODD_TEXTS)
        assert await leaf_hashes(connection, after=0, until=len(recorded)) == [hash_of(one) for one in recorded]
        assert await leaf_hashes(connection, after=2, until=4) == [hash_of(one) for one in recorded[2:4]]
        assert await leaf_hashes(connection, after=2, until=2) == []


async def test_a_day_in_place_of_its_hours_would_have_differed(
    odd_log: LogDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: it can tell."""
    monkeypatch.setattr(trees, "LEAVES", trees.LEAVES.replace("262968 hours", "10957 days"))
    async with await opened(odd_log) as connection:
        await connection.execute("SET timezone TO 'Europe/Berlin'")
        recorded = await read_page(connection, after=0, limit=100)
        assert await leaf_hashes(connection, after=0, until=len(recorded)) != [hash_of(one) for one in recorded]


@pytest.mark.parametrize("pieces", [(70_000,), (1, 255, 1, 255, 65_024, 1, 4_463), (256,) * 260 + (3_440,)])
def test_a_tree_grown_in_any_pieces_has_the_same_tiles_and_root(hashes: list[bytes], pieces: tuple[int, ...]) -> None:
    tree, tiles = Tree(), []
    for piece in pieces:
        tiles += tree.extend(hashes[tree.size : tree.size + piece])
    assert tree.size == 70_000
    assert tree.root() == merkle.root_of(hashes)
    assert {(one.level, one.index) for one in tiles} == {(0, n) for n in range(273)} | {(1, 0)}
    for one in tiles:
        width = 256 ** (one.level + 1)
        assert one.root == merkle.root_of(hashes[one.index * width : (one.index + 1) * width])


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 512, EVENTS])
async def test_a_tree_is_read_back_as_it_was(long_log: LogDatabase, size: int) -> None:
    async with await opened(long_log) as connection:
        tree = await grown(connection, size)
        again = await trees.read_tree(connection, size)
        assert (again.size, again.root()) == (size, tree.root())
        more = await leaf_hashes(connection, after=size, until=EVENTS)
        assert again.extend(more) == tree.extend(more)
        assert again.root() == tree.root()


async def test_proofs_from_tiles_verify(long_log: LogDatabase) -> None:
    async with await opened(long_log) as connection:
        await grown(connection, EVENTS)
        leaves = await leaf_hashes(connection, after=0, until=EVENTS)
        for size in (1, 2, 256, 300, 512, 767, 768, EVENTS):
            reader = TileReader(connection, size)
            root = await reader.root(0, size)
            assert root == merkle.root_of(leaves[:size])
            for index in {0, 1, 255, 256, 400, size - 1}:
                if index < size:
                    proof = await reader.inclusion_proof(index)
                    assert merkle.verify_inclusion(leaves[index], index, size, proof, root)
            for old in (0, 1, 255, 256, 257, 512, size):
                if old <= size:
                    old_root = merkle.root_of(leaves[:old])
                    proof = await reader.consistency_proof(old)
                    assert merkle.verify_consistency(old, old_root, size, root, proof)


async def test_what_is_missing_or_changed_is_told(long_log: LogDatabase) -> None:
    async with await opened(long_log) as connection:
        await grown(connection, EVENTS)
        await trees.verify_tiles(connection, first=0, end=3)
        with long_log.connect(superuser=True) as superuser:
            superuser.execute("SET session_replication_role = replica")
            for table in ("events", "notary_tiles"):
                superuser.execute(f"ALTER TABLE {table} DISABLE TRIGGER append_only".encode())
            superuser.execute('UPDATE events SET data = \'{"type":"y"}\' WHERE position = 300')
            superuser.execute("DELETE FROM events WHERE position IN (600, 800)")
            superuser.execute("DELETE FROM notary_tiles WHERE level = 0 AND index = 2")
        with pytest.raises(TreeDamaged, match="event 300 is not the one"):
            await trees.verify_tiles(connection, first=0, end=3)
        with pytest.raises(LogHole, match="position 600"):
            await trees.verify_tiles(connection, first=2, end=3)
        with pytest.raises(LogHole, match="position 800"):
            await trees.read_tree(connection, EVENTS)
        with pytest.raises(TreeDamaged, match="level 0 between 0 and 3"):
            await trees.read_tree(connection, 768)
        with pytest.raises(LogHole, match=f"position {EVENTS + 1}"):
            await leaf_hashes(connection, after=EVENTS - 1, until=EVENTS + 1)


@pytest.mark.parametrize("table", ["notary_tiles", "notary_checkpoints"])
@pytest.mark.parametrize("change", ["UPDATE {} SET root = root", "DELETE FROM {}", "TRUNCATE {}"])
def test_nobody_changes_what_was_signed(log_database: LogDatabase, table: str, change: str) -> None:
    with log_database.connect() as owner, pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute(change.format(table).encode())
    with log_database.connect(superuser=True) as superuser:
        for role in ("origin", "replica"):
            superuser.execute(f"SET session_replication_role = {role}".encode())
            with pytest.raises(psycopg.Error, match="is append-only"):
                superuser.execute(change.format(table).encode())
