"""API keys against the real log: owners are asked as they are, and a key is one's own."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.commands.test_users import registered
from tests.conftest_service import Service, by

from sightline.commands import api_keys as commands
from sightline.commands import users
from sightline.domain import api_keys
from sightline.domain.access import NotAllowed, Rights, Role
from sightline.domain.kernel import Grant, InvalidState, NotFound
from sightline.workers import lifecycle


def issue(owner_id: UUID, prefix: str = "0" * 16, **changed: Any) -> commands.IssueApiKey:
    given: dict[str, Any] = {
        "name": "line 3",
        "owner_id": owner_id,
        "issuer": Rights(Role.OPERATOR),
        "role": Role.OPERATOR,
        "scopes": None,
        "expires_at": lifecycle.now() + timedelta(days=1),
        "prefix": prefix,
        "secret_sha256": "a" * 64,
    }
    return commands.IssueApiKey(**given | changed)


async def test_a_key_is_issued_and_revoked_by_its_owner_alone(bare_service: Service) -> None:
    ada = await registered(bare_service, "ada@example.org", Role.OPERATOR)
    bob = await registered(bare_service, "bob@example.org", Role.OPERATOR)
    own = {"grant": Grant("keys:write", "own")}
    receipt = await bare_service.run(commands.issue_api_key, issue(ada), by(f"user:{ada}", **own))
    assert receipt.stream_id == api_keys.key_id("0" * 16)
    with pytest.raises(NotAllowed):
        await bare_service.run(commands.issue_api_key, issue(ada, "1" * 16), by(f"user:{bob}", **own))
    revoke = commands.RevokeApiKey(key_id=receipt.stream_id)
    with pytest.raises(NotAllowed):
        await bare_service.run(commands.revoke_api_key, revoke, by(f"user:{bob}", **own))
    for _ in range(2):
        revoked = await bare_service.run(commands.revoke_api_key, revoke, by(f"user:{ada}", **own))
        assert revoked.state.revoked_at is not None
    assert await bare_service.topics(receipt.stream_id) == ["issued", "revoked"]


async def test_nobody_owns_a_key_who_is_not_there(bare_service: Service) -> None:
    with pytest.raises(NotFound):
        await bare_service.run(commands.issue_api_key, issue(UUID(int=1)))
    await registered(bare_service, "root@example.org", Role.ADMIN)
    ada = await registered(bare_service, "ada@example.org", Role.OPERATOR)
    await bare_service.run(users.deactivate_user, users.DeactivateUser(user_id=ada))
    with pytest.raises(InvalidState):
        await bare_service.run(commands.issue_api_key, issue(ada))
    with pytest.raises(NotFound):
        await bare_service.run(commands.revoke_api_key, commands.RevokeApiKey(key_id=ada))
