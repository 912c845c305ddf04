"""Erasing: listed first, then destroyed; cut off anywhere it is done by asking again or by replaying the list."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.conftest_log import LogDatabase, utc

from sightline.adapters import postgres
from sightline.adapters.erasures import Erasure, Erasures, ErasuresDamaged
from sightline.adapters.sealing_keys import KeyRing
from sightline.adapters.vault import Vault
from sightline.commands import people
from sightline.commands.people import Replayed, erase_person, replay_erasures

NOON = utc(12)
FIELD = "session.user_id"


@pytest_asyncio.fixture
async def vault(log_database: LogDatabase, tmp_path: Path) -> AsyncIterator[Vault]:
    async with postgres.pool(log_database.dsn) as pool:
        yield Vault(pool, KeyRing(tmp_path))


@pytest.fixture
def erasures(tmp_path: Path) -> Erasures:
    return Erasures(tmp_path / "erasures.jsonl")


async def test_an_erased_person_is_listed_and_gone(vault: Vault, erasures: Erasures) -> None:
    sealed = await vault.seal(FIELD, person="ada", text="ada")
    assert await erase_person(vault, erasures, "ada", now=NOON) == sealed.subject
    assert sealed.subject is not None
    assert list(erasures) == [Erasure(NOON, sealed.subject)]
    assert await vault.open_one(FIELD, sealed) is None
    assert await erase_person(vault, erasures, "ada", now=NOON) is None
    assert len(list(erasures)) == 1


async def test_nobody_is_erased_who_could_not_be_listed(vault: Vault, tmp_path: Path) -> None:
    sealed = await vault.seal(FIELD, person="ada", text="ada")
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match="taken"):
        await erase_person(vault, Erasures(tmp_path / "taken" / "list"), "ada", now=NOON)
    assert await vault.open_one(FIELD, sealed) == "ada"


@pytest.mark.parametrize("again", ["erase", "replay"])
async def test_an_erasure_that_was_cut_off_is_finished(
    vault: Vault, erasures: Erasures, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    sealed = await vault.seal(FIELD, person="ada", text="ada")

    async def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Vault, "erase", cut_off)
        with pytest.raises(KeyboardInterrupt):
            await erase_person(vault, erasures, "ada", now=NOON)
    assert await vault.open_one(FIELD, sealed) == "ada"
    if again == "erase":
        assert await erase_person(vault, erasures, "ada", now=NOON) == sealed.subject
    else:
        assert await replay_erasures(vault, erasures) == Replayed(listed=1, erased=1)
    assert await vault.open_one(FIELD, sealed) is None


async def test_replaying_erases_those_on_the_list_alone_and_twice_is_once(
    vault: Vault, erasures: Erasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "REPLAYED_AT_ONCE", 2)
    assert await replay_erasures(vault, erasures) == Replayed(listed=0, erased=0)
    sealed = [await vault.seal(FIELD, person=person, text=person) for person in "abcdef"]
    for one in sealed[:5]:
        assert one.subject is not None
        erasures.add(Erasure(NOON, one.subject))
    assert await replay_erasures(vault, erasures) == Replayed(listed=5, erased=5)
    assert await replay_erasures(vault, erasures) == Replayed(listed=5, erased=0)
    assert await vault.open_many(FIELD, sealed) == [None] * 5 + ["f"]


async def test_whoever_came_back_is_not_erased_by_a_replay(vault: Vault, erasures: Erasures) -> None:
    await vault.seal(FIELD, person="ada", text="ada")
    await erase_person(vault, erasures, "ada", now=NOON)
    back = await vault.seal(FIELD, person="ada", text="ada")
    assert await replay_erasures(vault, erasures) == Replayed(listed=1, erased=0)
    assert await vault.open_one(FIELD, back) == "ada"


async def test_a_damaged_list_is_told(vault: Vault, erasures: Erasures) -> None:
    erasures.path.write_bytes(b"?\n")
    with pytest.raises(ErasuresDamaged):
        await replay_erasures(vault, erasures)
