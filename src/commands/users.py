"""Commands on users. Hashes come in made: a handler may run several times, and a hash is slow on purpose."""

from collections.abc import Mapping
from uuid import UUID

from msgspec import Struct

from ..domain import administrators, emails, users
from ..domain.access import Role
from ..domain.kernel import InvalidState
from ..domain.sealed import Sealed
from ..domain.users import User
from .transaction import Loaded, Transaction

# What the seals are bound to.
EMAIL = "user.email"
FULL_NAME = "user.full_name"
PASSWORD = "user.password"  # noqa: S105  # the name of a field


class RegisterUser(Struct, frozen=True, kw_only=True):
    """Attributes:
    password_hash: of a password that users.require_password() let pass, or from elsewhere.
    """

    user_id: UUID
    email: str
    full_name: str
    role: Role
    password_hash: str


class ChangeRole(Struct, frozen=True, kw_only=True):
    user_id: UUID
    role: Role


class SetPassword(Struct, frozen=True, kw_only=True):
    user_id: UUID
    password_hash: str


class RecordLogin(Struct, frozen=True, kw_only=True):
    """Attributes:
    verified: the sealed hash that the password was held against; if it is another one by now, nobody logs in.
    rehashed: the hash to keep from now on, where that one is outdated.
    """

    user_id: UUID
    verified: Sealed
    rehashed: str | None = None


class RevokeTokens(Struct, frozen=True, kw_only=True):
    """Log out everywhere.

    Attributes:
        generation: that ends; None: whichever it is.
    """

    user_id: UUID
    generation: int | None = None


class DeactivateUser(Struct, frozen=True, kw_only=True):
    """Attributes:
    release: give up the email as well, for the person is about to be erased.
    """

    user_id: UUID
    release: bool = False


class PasswordMoved(InvalidState):
    """Somebody set another password meanwhile."""


async def register_user(tx: Transaction, command: RegisterUser) -> Loaded[User]:
    """
    Raises:
        EmailTaken: somebody has it.
        Invalid: an email, or a name, that cannot be.
    """
    email = emails.normalised(command.email)
    full_name = users.require_full_name(command.full_name)
    user = await tx.create(users.AGGREGATE, command.user_id)
    texts: Mapping[str, str] = {EMAIL: email, FULL_NAME: full_name, PASSWORD: command.password_hash}
    sealed = {field: await tx.seal(field, person=email, text=text) for field, text in texts.items()}
    subject = sealed[EMAIL].subject
    assert subject is not None, "the vault seals under a subject"
    claim = await tx.load(emails.AGGREGATE, emails.claim_id(subject))
    tx.say(claim, emails.claim(claim.state, holder=command.user_id, now=tx.caller.now))
    events = users.register(
        user.state,
        email=sealed[EMAIL],
        full_name=sealed[FULL_NAME],
        role=command.role,
        password=sealed[PASSWORD],
        by=tx.caller.actor,
        now=tx.caller.now,
    )
    await _keep_roster(tx, command.user_id, tx.say(user, events).state)
    return user


async def change_role(tx: Transaction, command: ChangeRole) -> Loaded[User]:
    """
    Raises:
        LastAdministrator: nobody else is one.
    """
    user = await tx.load(users.AGGREGATE, command.user_id)
    was = user.state
    tx.say(user, users.change_role(user.state, role=command.role, by=tx.caller.actor, now=tx.caller.now))
    await _keep_roster(tx, command.user_id, user.state, was)
    return user


async def set_password(tx: Transaction, command: SetPassword) -> Loaded[User]:
    user = await tx.load(users.AGGREGATE, command.user_id)
    users.require_active(user.state)
    password = await _sealed_password(tx, user.state, command.password_hash)
    return tx.say(user, users.set_password(user.state, password=password, by=tx.caller.actor, now=tx.caller.now))


async def record_login(tx: Transaction, command: RecordLogin) -> Loaded[User]:
    """
    Raises:
        PasswordMoved: it is no longer the one that was verified.
    """
    user = await tx.load(users.AGGREGATE, command.user_id)
    events = users.record_login(user.state, now=tx.caller.now)
    if user.state.password != command.verified:
        raise PasswordMoved("the password is another one now")
    if command.rehashed is not None:
        password = await _sealed_password(tx, user.state, command.rehashed)
        tx.say(user, users.set_password(user.state, password=password, by=tx.caller.actor, now=tx.caller.now))
    return tx.say(user, events)


async def revoke_tokens(tx: Transaction, command: RevokeTokens) -> Loaded[User]:
    user = await tx.load(users.AGGREGATE, command.user_id)
    generation = user.state.generation if command.generation is None else command.generation
    events = users.revoke_tokens(user.state, generation=generation, by=tx.caller.actor, now=tx.caller.now)
    return tx.say(user, events)


async def deactivate_user(tx: Transaction, command: DeactivateUser) -> Loaded[User]:
    """
    Raises:
        LastAdministrator: nobody else is one.
    """
    user = await tx.load(users.AGGREGATE, command.user_id)
    was = user.state
    tx.say(user, users.deactivate(user.state, by=tx.caller.actor, now=tx.caller.now))
    await _keep_roster(tx, command.user_id, user.state, was)
    if command.release and user.state.email is not None and user.state.email.subject is not None:
        claim = await tx.load(emails.AGGREGATE, emails.claim_id(user.state.email.subject))
        if claim.state.user_id == command.user_id:
            tx.say(claim, emails.release(claim.state, now=tx.caller.now))
    return user


async def _keep_roster(tx: Transaction, user_id: UUID, now: User, was: User | None = None) -> None:
    """The roster follows in the same append; it is loaded only where it changes, for every administrator shares it."""
    if _administers(now) == (was is not None and _administers(was)):
        return
    roster = await tx.load(administrators.AGGREGATE, administrators.ROSTER_ID)
    decide = administrators.enter if _administers(now) else administrators.leave
    tx.say(roster, decide(roster.state, member=user_id, by=tx.caller.actor, now=tx.caller.now))


def _administers(user: User) -> bool:
    return user.status == "active" and user.role is Role.ADMIN


async def _sealed_password(tx: Transaction, user: User, password_hash: str) -> Sealed:
    """Beside the email, under the key that there is: never under a new one, which the erased would come back by."""
    assert tx.commands.vault is not None, "these commands have no vault"
    assert user.email is not None, "an active user has an email"
    sealed = await tx.commands.vault.seal_beside(user.email, PASSWORD, text=password_hash)
    if sealed is None:
        raise InvalidState("the person was erased")
    return sealed
