"""Proofs over HTTP: whoever has the public key and a checkpoint can check them; where they fail, that is said."""

import base64
import itertools
from typing import Any
from uuid import uuid4

import pytest
from tests.conftest_log import LogDatabase, command
from tests.http.door import Door

from sightline.adapters import postgres
from sightline.adapters.event_store.leaf import hash_of
from sightline.adapters.notes import Signer, verify_checkpoint
from sightline.domain.merkle import EMPTY_ROOT, verify_consistency, verify_inclusion
from sightline.workers.notary import Kept, open_notary

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZES = (9, 260, 600)


async def sign(door: Door) -> int:
    settings = door.services.settings
    async with await postgres.connect(settings.database_url) as connection:
        notary = await open_notary(connection, Signer.load(settings.data_dir / "keys"), Kept.of(settings))
        await notary.step()
        return notary.size


async def fill_to(door: Door, size: int) -> None:
    await door.services.store.append(command((uuid4(), 0), events_each=size - await door.position()))


async def get(door: Door, path: str, **query: Any) -> Any:
    answer = await door.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def key_of(door: Door) -> str:
    return (await door.client.get("/v1/audit/key")).text


async def problem(door: Door, path: str, **query: Any) -> tuple[int, str]:
    answer = await door.client.get(path, params=query or None)
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


async def test_before_anything_is_signed(door: Door) -> None:
    for path in ("key", "checkpoint", "consistency", "checkpoint?tree_size=1"):
        assert await problem(door, f"/v1/audit/{path}") == (404, "not_found")
    assert await door.position() > 0
    answer = await door.client.get("/v1/audit/proof/1")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_signed_yet")
    assert answer.headers["Retry-After"] == "1"


async def test_a_checkpoint_is_a_note_and_verifies_with_the_key(door: Door) -> None:
    for size in SIZES:
        await fill_to(door, size)
        assert await sign(door) == size
    key = await key_of(door)
    answer = await door.client.get("/v1/audit/checkpoint")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["Event-Position"] == str(SIZES[-1])
    signed = verify_checkpoint(answer.text, key)
    assert signed.tree_size == SIZES[-1]
    as_json = await door.client.get("/v1/audit/checkpoint", headers={"Accept": "application/json"})
    root = base64.b64encode(signed.root).decode()
    assert as_json.json() == {"tree_size": SIZES[-1], "root": root, "note": answer.text}
    first = await door.client.get("/v1/audit/checkpoint", params={"tree_size": SIZES[0]})
    assert verify_checkpoint(first.text, key).tree_size == SIZES[0]
    assert await problem(door, "/v1/audit/checkpoint", tree_size=7) == (404, "not_found")


async def test_every_event_is_proven_in_every_tree_that_has_it(door: Door) -> None:
    key = await key_of(door)
    for position, size in itertools.product((1, 9, 256, 257, 600), (None, *SIZES)):
        path, query = f"/v1/audit/proof/{position}", {"tree_size": size} if size else {}
        if size is not None and position > size:
            assert await problem(door, path, **query) == (404, "not_found")
            continue
        found = await get(door, path, **query)
        signed = verify_checkpoint(found["checkpoint"], key)
        assert (found["position"], found["index"]) == (position, position - 1)
        assert found["tree_size"] == signed.tree_size == (size or SIZES[-1])
        (recorded,) = await door.services.store.reader.page(after=position - 1, limit=1)
        proof = [raw(one) for one in found["proof"]]
        assert raw(found["leaf_hash"]) == hash_of(recorded)
        assert verify_inclusion(hash_of(recorded), position - 1, signed.tree_size, proof, signed.root)


async def test_any_two_sizes_are_proven_to_be_one_log(door: Door) -> None:
    key = await key_of(door)
    notes = {size: (await door.client.get(f"/v1/audit/checkpoint?tree_size={size}")).text for size in SIZES}
    roots = {size: verify_checkpoint(note, key).root for size, note in notes.items()} | {0: EMPTY_ROOT}
    for old, new in itertools.combinations_with_replacement((0, 1, 9, 256, 260, 513, 600), 2):
        found = await get(door, "/v1/audit/consistency", **{"from": old, "to": new})
        assert (found["from"], found["to"], found["checkpoint"]) == (old, new, notes[600])
        old_root, new_root = raw(found["from_root"]), raw(found["to_root"])
        assert old_root == roots.get(old, old_root)
        assert new_root == roots.get(new, new_root)
        assert verify_consistency(old, old_root, new, new_root, [raw(one) for one in found["proof"]])
    assert (await get(door, "/v1/audit/consistency"))["to"] == 600
    assert await problem(door, "/v1/audit/consistency", **{"from": 9, "to": 8}) == (422, "validation_failed")
    assert await problem(door, "/v1/audit/consistency", to=601) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("proof/0", (404, "not_found")),
        ("proof/601", (404, "not_found")),
        (f"proof/{10**30}", (404, "not_found")),
        ("proof/1?tree_size=0", (422, "validation_failed")),
        (f"consistency?to={10**30}", (422, "validation_failed")),
        ("consistency?from=-1", (422, "validation_failed")),
        ("proof/one", (404, "not_found")),
    ],
)
async def test_what_cannot_be_asked(door: Door, path: str, expected: tuple[int, str]) -> None:
    assert await problem(door, f"/v1/audit/{path}") == expected


async def test_a_log_that_was_changed_has_no_proofs(door: Door, door_database: LogDatabase) -> None:
    """Last in this file: it breaks what the others need."""
    with door_database.connect(superuser=True) as superuser:
        superuser.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        superuser.execute("UPDATE events SET topic = 'x' WHERE position IN (10, 590)")
    for position in (10, 590, 600):  # 600 is whole, but its siblings are hashed from events that are not
        assert await problem(door, f"/v1/audit/proof/{position}") == (500, "log_damaged")
    # In a tree whose tiles were kept, what lies between changed events has its proof.
    assert (await door.client.get("/v1/audit/proof/11?tree_size=260")).status_code == 200
    assert await problem(door, "/v1/audit/consistency", **{"from": 9}) == (500, "log_damaged")
    with door_database.connect(superuser=True) as superuser:
        superuser.execute("DELETE FROM events WHERE position = 10")
    assert await problem(door, "/v1/audit/proof/10") == (500, "log_damaged")
