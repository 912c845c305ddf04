"""Who somebody is today, whatever another process did to him a moment ago."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from argon2 import PasswordHasher
from msgspec import Struct
from tests.commands.test_api_keys import issue
from tests.conftest_service import Service, by

from sightline.adapters.event_store import writer
from sightline.adapters.event_store.writer import StoreBusy
from sightline.adapters.ids import uuid7
from sightline.adapters.passwords import Passwords
from sightline.adapters.tokens import Tokens
from sightline.commands import api_keys as key_commands
from sightline.commands import users
from sightline.commands.authentication import Authentication, BadCredentials
from sightline.commands.transact import DECISIONS_MAX, Commands
from sightline.domain import api_keys
from sightline.domain.access import NotAuthenticated, Rights, Role
from sightline.workers import lifecycle

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PASSWORD = "correct horse battery staple"


class Two(Struct):
    """Two processes on one log: what one caches, the other changes."""

    here: Authentication
    there: Commands
    service: Service


@pytest_asyncio.fixture
async def two(bare_service: Service) -> AsyncIterator[Two]:
    vault = bare_service.commands.vault
    assert vault is not None
    passwords = Passwords(CHEAP)
    there = Commands(bare_service.services.store, vault=vault)
    tokens = Tokens([b"s" * 32], lifetime_s=60)
    yield Two(Authentication(bare_service.commands, vault, passwords, tokens), there, bare_service)
    await there.close()
    passwords.close()


async def registered(two: Two, email: str = "ada@example.org", role: Role = Role.OPERATOR) -> users.RegisterUser:
    command = users.RegisterUser(
        user_id=uuid7(), email=email, full_name="Ada", role=role, password_hash=CHEAP.hash(PASSWORD)
    )
    await two.there.execute(users.register_user, command, by())
    return command


async def test_a_login_gives_a_token_that_says_who_it_is(two: Two) -> None:
    user = await registered(two)
    logged_in = await two.here.login("ADA@example.org", PASSWORD, by("anonymous"))
    assert logged_in.user_id == user.user_id
    found = await two.here.principal_of_token(logged_in.token)
    assert found.actor == f"user:{user.user_id}"
    assert found.rights == Rights(Role.OPERATOR)
    assert (found.credential.user_id, found.credential.generation, found.credential.key_id) == (user.user_id, 1, None)
    [*_, last] = await two.service.events(user.user_id)
    assert (last.topic, last.envelope.actor) == ("user.login_recorded", f"user:{user.user_id}")


async def test_what_another_process_took_back_is_not_good_here(two: Two) -> None:
    user = await registered(two)
    token = (await two.here.login("ada@example.org", PASSWORD, by())).token
    assert (await two.here.principal_of_token(token)).actor
    await two.there.execute(users.revoke_tokens, users.RevokeTokens(user_id=user.user_id), by())
    with pytest.raises(NotAuthenticated):
        await two.here.principal_of_token(token)


async def test_a_key_is_its_owner_and_no_longer(two: Two) -> None:
    user = await registered(two)
    await registered(two, "root@example.org", Role.ADMIN)
    secret, prefix = bytes(32), "0" * 16
    digest = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"  # of 32 zero bytes
    command = issue(user.user_id, prefix, secret_sha256=digest, scopes=frozenset({"jobs:read"}))
    key = await two.there.execute(key_commands.issue_api_key, command, by())
    text = api_keys.text_of(prefix, secret)
    found = await two.here.principal_of_key(text)
    assert (found.actor, found.credential.key_id) == (f"user:{user.user_id}", key.stream_id)
    assert found.rights == Rights(Role.OPERATOR, frozenset({"jobs:read"}))
    for other in (api_keys.text_of(prefix, bytes(31) + b"\1"), api_keys.text_of("1" * 16, secret), "sl_"):
        with pytest.raises(NotAuthenticated):
            await two.here.principal_of_key(other)
    await two.there.execute(users.deactivate_user, users.DeactivateUser(user_id=user.user_id), by())
    with pytest.raises(NotAuthenticated):
        await two.here.principal_of_key(text)


async def test_a_key_expires_by_the_clock(two: Two) -> None:
    user = await registered(two)
    digest = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"
    earlier = lifecycle.now() - timedelta(hours=2)
    command = issue(user.user_id, secret_sha256=digest, expires_at=earlier + timedelta(hours=1))
    await two.there.execute(key_commands.issue_api_key, command, by(now=earlier))
    with pytest.raises(NotAuthenticated, match="expired"):
        await two.here.principal_of_key(api_keys.text_of("0" * 16, bytes(32)))


async def test_a_token_of_a_stream_that_is_no_user_is_nobodys(two: Two) -> None:
    session_id = await two.service.session()
    token, _ = Tokens([b"s" * 32], lifetime_s=60).issue(session_id, 1)
    with pytest.raises(NotAuthenticated):
        await two.here.principal_of_token(token)


async def test_whoever_is_deactivated_while_the_hash_is_made_does_not_log_in(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await registered(two)
    verify = Passwords.verify

    async def slowly(self: Passwords, password: str, known: str | None) -> object:
        verified = await verify(self, password, known)
        await two.there.execute(users.deactivate_user, users.DeactivateUser(user_id=user.user_id), by())
        return verified

    monkeypatch.setattr(Passwords, "verify", slowly)
    with pytest.raises(BadCredentials):
        await two.here.login("ada@example.org", PASSWORD, by())
    assert await two.service.topics(user.user_id) == ["registered", "deactivated"]


async def test_whoever_comes_at_a_bad_moment_is_told_to_come_back_and_not_that_his_password_is_wrong(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await registered(two)
    append, others = two.service.commands.store.writer.append, 0

    async def second(*given: Any, **named: Any) -> Any:
        """Another process is always a moment earlier."""
        nonlocal others
        if others < DECISIONS_MAX and not given[0].metadata.count(b"other"):
            others += 1
            role = users.ChangeRole(user_id=user.user_id, role=(Role.OPERATOR, Role.VIEWER)[others % 2])
            await two.there.execute(users.change_role, role, by("other"))
        return await append(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(two.service.commands.store.writer, "append", second)
        with pytest.raises(StoreBusy) as refused:
            await two.here.login("ada@example.org", PASSWORD, by())
        assert refused.value.extra["retry_after_s"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(writer, "QUEUE_COMMANDS_MAX", 0)
        with pytest.raises(StoreBusy):
            await two.here.login("ada@example.org", PASSWORD, by())
    assert (await two.here.login("ada@example.org", PASSWORD, by())).user_id == user.user_id
    with pytest.raises(BadCredentials):
        await two.here.login("ada@example.org", "another one", by())
