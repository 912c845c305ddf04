"""Erasing: listed first, then destroyed; cut off anywhere it is done by asking again or by replaying the list."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.conftest_log import utc
from tests.conftest_service import by

from sightline.adapters.erasures import Erasure, Erasures, ErasuresDamaged
from sightline.adapters.event_store.store import EventStore
from sightline.adapters.ids import uuid7
from sightline.adapters.sealing_keys import KeyRing
from sightline.adapters.vault import Vault
from sightline.commands import people
from sightline.commands import users as user_commands
from sightline.commands.people import Replayed, erase_person, replay_erasures
from sightline.commands.transact import Commands, Receipt
from sightline.domain import users
from sightline.domain.access import Role
from sightline.domain.administrators import LastAdministrator
from sightline.domain.users import User

NOON = utc(12)
FIELD = "session.user_id"


@pytest.fixture
def vault(store: EventStore, tmp_path: Path) -> Vault:
    return Vault(store.pool, KeyRing(tmp_path))


@pytest_asyncio.fixture
async def commands(store: EventStore, vault: Vault) -> AsyncIterator[Commands]:
    opened = Commands(store, vault=vault)
    yield opened
    await opened.close()


@pytest.fixture
def erasures(tmp_path: Path) -> Erasures:
    return Erasures(tmp_path / "erasures.jsonl")


async def test_an_erased_person_is_listed_and_gone(commands: Commands, vault: Vault, erasures: Erasures) -> None:
    sealed = await vault.seal(FIELD, person="ada", text="ada")
    assert await erase_person(commands, vault, erasures, "ada", now=NOON) == [sealed.subject]
    assert sealed.subject is not None
    assert list(erasures) == [Erasure(NOON, sealed.subject)]
    assert await vault.open_one(FIELD, sealed) is None
    assert await erase_person(commands, vault, erasures, "ada", now=NOON) == []
    assert len(list(erasures)) == 1


async def test_nobody_is_erased_who_could_not_be_listed(commands: Commands, vault: Vault, tmp_path: Path) -> None:
    sealed = await vault.seal(FIELD, person="ada", text="ada")
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match="taken"):
        await erase_person(commands, vault, Erasures(tmp_path / "taken" / "list"), "ada", now=NOON)
    assert await vault.open_one(FIELD, sealed) == "ada"


@pytest.mark.parametrize("again", ["erase", "replay"])
async def test_an_erasure_that_was_cut_off_is_finished(
    commands: Commands, vault: Vault, erasures: Erasures, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    sealed = await vault.seal(FIELD, person="ada", text="ada")

    async def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Vault, "erase", cut_off)
        with pytest.raises(KeyboardInterrupt):
            await erase_person(commands, vault, erasures, "ada", now=NOON)
    assert await vault.open_one(FIELD, sealed) == "ada"
    if again == "erase":
        assert await erase_person(commands, vault, erasures, "ada", now=NOON) == [sealed.subject]
    else:
        assert await replay_erasures(commands, vault, erasures) == Replayed(listed=1, erased=1)
    assert await vault.open_one(FIELD, sealed) is None


async def test_replaying_erases_those_on_the_list_alone_and_twice_is_once(
    commands: Commands, vault: Vault, erasures: Erasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "REPLAYED_AT_ONCE", 2)
    assert await replay_erasures(commands, vault, erasures) == Replayed(listed=0, erased=0)
    sealed = [await vault.seal(FIELD, person=person, text=person) for person in "abcdef"]
    for one in sealed[:5]:
        assert one.subject is not None
        erasures.add(Erasure(NOON, one.subject))
    assert await replay_erasures(commands, vault, erasures) == Replayed(listed=5, erased=5)
    assert await replay_erasures(commands, vault, erasures) == Replayed(listed=5, erased=0)
    assert await vault.open_many(FIELD, sealed) == [None] * 5 + ["f"]


async def test_whoever_came_back_is_not_erased_by_a_replay(
    commands: Commands, vault: Vault, erasures: Erasures
) -> None:
    await vault.seal(FIELD, person="ada", text="ada")
    await erase_person(commands, vault, erasures, "ada", now=NOON)
    back = await vault.seal(FIELD, person="ada", text="ada")
    assert await replay_erasures(commands, vault, erasures) == Replayed(listed=1, erased=0)
    assert await vault.open_one(FIELD, back) == "ada"


async def test_a_damaged_list_is_told(commands: Commands, vault: Vault, erasures: Erasures) -> None:
    erasures.path.write_bytes(b"?\n")
    with pytest.raises(ErasuresDamaged):
        await replay_erasures(commands, vault, erasures)


# People who are users


async def registered(commands: Commands, email: str, role: Role = Role.OPERATOR) -> Receipt[User]:
    command = user_commands.RegisterUser(
        user_id=uuid7(), email=email, full_name="Ada", role=role, password_hash="$argon2id$"
    )
    return await commands.execute(user_commands.register_user, command, by())


async def status_of(commands: Commands, user: Receipt[User]) -> str | None:
    state, _, _ = await commands.state(users.AGGREGATE, user.stream_id, read_tail=True)
    return state.status


async def test_an_erased_user_is_deactivated_and_the_email_may_be_registered_anew(
    commands: Commands, vault: Vault, erasures: Erasures
) -> None:
    before = await registered(commands, "ada@example.org")
    as_session = await vault.seal(FIELD, person="Ada@example.org", text="Ada")  # sealed as it was typed
    erased = await erase_person(commands, vault, erasures, "Ada@example.org", now=NOON)
    assert before.state.email is not None
    assert set(erased) == {as_session.subject, before.state.email.subject}
    assert await status_of(commands, before) == "deactivated"
    assert await vault.open_one(user_commands.PASSWORD, before.state.password) is None
    after = await registered(commands, "ada@example.org")
    assert after.state.email is not None
    assert after.stream_id != before.stream_id
    assert after.state.email.subject != before.state.email.subject
    assert await status_of(commands, after) == "active"
    assert await vault.open_one(user_commands.EMAIL, before.state.email) is None


async def test_the_last_administrator_is_not_erased(commands: Commands, vault: Vault, erasures: Erasures) -> None:
    ada = await registered(commands, "ada@example.org", Role.ADMIN)
    with pytest.raises(LastAdministrator):
        await erase_person(commands, vault, erasures, "ada@example.org", now=NOON)
    assert list(erasures) == []
    assert await vault.open_one(user_commands.EMAIL, ada.state.email) == "ada@example.org"
    await registered(commands, "bob@example.org", Role.ADMIN)
    assert await erase_person(commands, vault, erasures, "ada@example.org", now=NOON) != []


async def test_a_user_who_came_back_by_a_restore_is_deactivated_again(
    commands: Commands, vault: Vault, erasures: Erasures
) -> None:
    """After a restore log and keys are as before the erasure, and the list knows the subject alone."""
    ada, root = (
        await registered(commands, "ada@example.org"),
        await registered(commands, "root@example.org", Role.ADMIN),
    )
    for one in (ada, root):
        assert one.state.email is not None
        assert one.state.email.subject is not None
        erasures.add(Erasure(NOON, one.state.email.subject))
    assert await replay_erasures(commands, vault, erasures) == Replayed(listed=2, erased=2, kept=1)
    assert (await status_of(commands, ada), await status_of(commands, root)) == ("deactivated", "active")
    assert await vault.open_one(user_commands.PASSWORD, root.state.password) is None
    await registered(commands, "ada@example.org")
    await registered(commands, "new@example.org", Role.ADMIN)
    assert await replay_erasures(commands, vault, erasures) == Replayed(listed=2, erased=0, kept=0)
    assert await status_of(commands, root) == "deactivated"
