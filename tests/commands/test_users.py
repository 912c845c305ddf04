"""Users against the real log: one holder of an email, one administrator at least, whoever else asks meanwhile."""

import asyncio
from uuid import UUID

import pytest
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import transact
from sightline.commands import users as commands
from sightline.commands.transact import Commands
from sightline.domain import administrators, emails, users
from sightline.domain.access import Role
from sightline.domain.administrators import LastAdministrator
from sightline.domain.emails import EmailTaken
from sightline.domain.kernel import Invalid, InvalidState, Rejection

HASH = "$argon2id$not-a-real-one"


def register(email: str, role: Role = Role.VIEWER, user_id: UUID | None = None) -> commands.RegisterUser:
    return commands.RegisterUser(
        user_id=user_id or uuid7(), email=email, full_name="Ada", role=role, password_hash=HASH
    )


async def registered(service: Service, email: str, role: Role = Role.VIEWER) -> UUID:
    return (await service.run(commands.register_user, register(email, role))).stream_id


async def roster(service: Service) -> frozenset[UUID]:
    state, _, _ = await service.commands.state(administrators.AGGREGATE, administrators.ROSTER_ID, read_tail=True)
    return state.user_ids


async def claim_of(service: Service, email: str) -> UUID | None:
    assert service.commands.vault is not None
    subject = await service.commands.vault.subject_of(emails.normalised(email))
    assert subject is not None
    state, _, _ = await service.commands.state(emails.AGGREGATE, emails.claim_id(subject), read_tail=True)
    return state.user_id


async def test_a_user_is_registered_under_one_spelling(bare_service: Service) -> None:
    receipt = await bare_service.run(commands.register_user, register(" ADA@Example.org"))
    assert receipt.state.status == "active"
    assert bare_service.commands.vault is not None
    vault = bare_service.commands.vault
    assert await vault.open_one(commands.EMAIL, receipt.state.email) == "ada@example.org"
    assert await vault.open_one(commands.PASSWORD, receipt.state.password) == HASH
    assert await vault.open_one(commands.EMAIL, receipt.state.password) is None  # each box opens in its own place
    assert await claim_of(bare_service, "ada@example.org") == receipt.stream_id
    with pytest.raises(EmailTaken):
        await bare_service.run(commands.register_user, register("ａｄａ@example.ORG"))


async def test_nothing_is_sealed_for_a_registration_that_cannot_be(bare_service: Service) -> None:
    with pytest.raises(Invalid):
        await bare_service.run(commands.register_user, register("nobody"))
    assert bare_service.commands.vault is not None
    assert await bare_service.commands.vault.subject_of("nobody") is None


async def test_of_two_who_register_one_email_at_once_one_does(bare_service: Service) -> None:
    other = Commands(bare_service.services.store, vault=bare_service.commands.vault)  # as another process
    for number in range(10):
        email = f"user{number}@example.org"
        outcomes = await asyncio.gather(
            *(
                one.execute(commands.register_user, register(email), by())
                for one in (bare_service.commands, other, bare_service.commands)
            ),
            return_exceptions=True,
        )
        winners = [one for one in outcomes if isinstance(one, transact.Receipt)]
        assert [type(one) for one in outcomes if one not in winners] == [EmailTaken] * 2
        assert await claim_of(bare_service, email) == winners[0].stream_id
    await other.close()


async def test_the_same_registration_twice_is_one(bare_service: Service) -> None:
    caller = by()
    command = register("ada@example.org", Role.ADMIN)
    first = await bare_service.run(commands.register_user, command, caller)
    again = await bare_service.run(commands.register_user, command, caller)
    assert (again.stream_id, again.repeat) == (first.stream_id, True)
    assert await roster(bare_service) == {first.stream_id}


async def test_the_roster_follows_roles(bare_service: Service) -> None:
    ada = await registered(bare_service, "ada@example.org", Role.ADMIN)
    bob = await registered(bare_service, "bob@example.org")
    assert await roster(bare_service) == {ada}
    with pytest.raises(LastAdministrator):
        await bare_service.run(commands.change_role, commands.ChangeRole(user_id=ada, role=Role.OPERATOR))
    with pytest.raises(LastAdministrator):
        await bare_service.run(commands.deactivate_user, commands.DeactivateUser(user_id=ada))
    await bare_service.run(commands.change_role, commands.ChangeRole(user_id=bob, role=Role.ADMIN))
    await bare_service.run(commands.deactivate_user, commands.DeactivateUser(user_id=ada))
    await bare_service.run(commands.deactivate_user, commands.DeactivateUser(user_id=ada))
    assert await roster(bare_service) == {bob}
    assert await bare_service.topics(ada) == ["registered", "deactivated"]


async def demote_each_other(service: Service, times: int) -> list[int]:
    """Two administrators demote each other at once, each through commands of its own; how many are left each time."""
    ada = await registered(service, "ada@example.org", Role.ADMIN)
    bob = await registered(service, "bob@example.org", Role.ADMIN)
    other = Commands(service.services.store, vault=service.commands.vault)
    left = []
    for _ in range(times):
        outcomes = await asyncio.gather(
            service.commands.execute(commands.change_role, commands.ChangeRole(user_id=bob, role=Role.OPERATOR), by()),
            other.execute(commands.change_role, commands.ChangeRole(user_id=ada, role=Role.OPERATOR), by()),
            return_exceptions=True,
        )
        assert all(isinstance(one, transact.Receipt | Rejection) for one in outcomes)
        roles = [await service.commands.state(users.AGGREGATE, one, read_tail=True) for one in (ada, bob)]
        left.append(sum(state.role is Role.ADMIN for state, _, _ in roles))
        for one in (ada, bob):
            await service.run(commands.change_role, commands.ChangeRole(user_id=one, role=Role.ADMIN))
    await other.close()
    return left


async def test_two_administrators_who_demote_each_other_leave_one(bare_service: Service) -> None:
    assert await demote_each_other(bare_service, 50) == [1] * 50


async def test_without_the_roster_nobody_is_left(bare_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_roster(*_: object) -> None:
        return

    monkeypatch.setattr(commands, "_keep_roster", no_roster)
    assert 0 in await demote_each_other(bare_service, 10)


async def test_a_password_is_sealed_under_the_same_key_and_never_under_a_new_one(bare_service: Service) -> None:
    vault = bare_service.commands.vault
    assert vault is not None
    user_id = await registered(bare_service, "ada@example.org")
    receipt = await bare_service.run(
        commands.set_password, commands.SetPassword(user_id=user_id, password_hash="$another")
    )
    assert receipt.state.generation == 2
    assert receipt.state.email is not None
    assert receipt.state.password is not None
    assert receipt.state.password.subject == receipt.state.email.subject
    assert await vault.open_one(commands.PASSWORD, receipt.state.password) == "$another"
    assert receipt.state.email.subject is not None
    await vault.erase([receipt.state.email.subject])
    with pytest.raises(InvalidState):
        await bare_service.run(commands.set_password, commands.SetPassword(user_id=user_id, password_hash="$third"))
    assert await vault.subject_of("ada@example.org") is None


async def test_a_login_counts_only_for_the_password_that_was_verified(bare_service: Service) -> None:
    first = await bare_service.run(commands.register_user, register("ada@example.org"))
    user_id = first.stream_id
    assert first.state.password is not None
    login = commands.RecordLogin(user_id=user_id, verified=first.state.password, rehashed="$newer")
    rehashed = await bare_service.run(commands.record_login, login)
    assert rehashed.state.last_login_at is not None
    assert await bare_service.topics(user_id) == ["registered", "password_set", "login_recorded"]
    with pytest.raises(commands.PasswordMoved):
        await bare_service.run(commands.record_login, login)


async def test_logging_out_ends_the_generation_that_is_named_once(bare_service: Service) -> None:
    user_id = await registered(bare_service, "ada@example.org")
    named = commands.RevokeTokens(user_id=user_id, generation=1)
    for _ in range(2):
        receipt = await bare_service.run(commands.revoke_tokens, named)
        assert receipt.state.generation == 2
    receipt = await bare_service.run(commands.revoke_tokens, commands.RevokeTokens(user_id=user_id))
    assert receipt.state.generation == 3
