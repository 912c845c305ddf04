"""People at a door with authentication: made with the commands, for the door itself lets nobody in yet."""

from functools import cache
from uuid import UUID

from argon2 import PasswordHasher
from argon2.profiles import RFC_9106_LOW_MEMORY
from tests.conftest_service import by
from tests.http.door import Door

from sightline.adapters.ids import uuid7
from sightline.commands import users
from sightline.domain import users as domain
from sightline.domain.access import Role

SECRET = "a secret of thirty-two bytes or more for tests"
PASSWORD = "correct horse battery staple"


@cache
def hash_of(password: str) -> str:
    """As the service makes them; each costs as much as it should, so that a test asks once."""
    return PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY).hash(password)


async def registered(door: Door, email: str, role: Role = Role.VIEWER, *, password_hash: str | None = None) -> UUID:
    """A new user's id; with PASSWORD, or that of another hash."""
    services = door.services
    command = users.RegisterUser(
        user_id=uuid7(),
        email=email,
        full_name=email.partition("@")[0].title(),
        role=role,
        password_hash=password_hash or hash_of(PASSWORD),
    )
    return (await services.commands.execute(users.register_user, command, by("system"))).stream_id


async def token_of(door: Door, email: str, password: str = PASSWORD) -> dict[str, str]:
    """The header of somebody who has just logged in."""
    answer = await door.client.post("/v1/auth/login", json={"email": email, "password": password})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


async def headers_of(door: Door, user_id: UUID) -> dict[str, str]:
    """The same without the login."""
    user, _, _ = await door.services.commands.state(domain.AGGREGATE, user_id, read_tail=True)
    token, _ = door.services.authentication._tokens.issue(user_id, user.generation)
    return {"Authorization": f"Bearer {token}"}
