"""Who somebody is: a password once, then a token or an API key, each of them asked again of the log.

Whatever is wrong with a login is told in the same words after the same work: who guesses learns nothing of who is
registered here.
"""

import hashlib
import hmac
from datetime import UTC, datetime
from uuid import UUID, uuid4

from msgspec import Struct
from msgspec.structs import replace

from ..adapters.event_store.writer import StoreBusy
from ..adapters.passwords import Passwords
from ..adapters.tokens import Tokens
from ..adapters.vault import Vault
from ..domain import api_keys, emails, users
from ..domain.access import Credential, NotAuthenticated, Rights
from ..domain.kernel import Aggregate, Caller, Invalid, InvalidState, NotFound, Rejection
from ..domain.sealed import Sealed
from ..domain.users import User
from .transact import Commands, Contended, Receipt, S
from .users import PASSWORD, RecordLogin, record_login

WORDS = "no user has this email and this password"


class BadCredentials(Rejection):
    """No such user, another password, or deactivated: nobody is told which."""

    code = "bad_credentials"


class LoggedIn(Struct, frozen=True):
    """Attributes:
    token: good until `expires_at`, or until the user's generation moves on.
    receipt: the user after the login, and where in the log it is.
    """

    token: str
    expires_at: datetime
    user_id: UUID
    receipt: Receipt[User]


class Identified(Struct, frozen=True):
    """Somebody whose credential is good today.

    Attributes:
        actor: the name that events carry, `user:<id>`; an API key acts as its owner.
    """

    actor: str
    rights: Rights
    credential: Credential


class Authentication:
    """One per process. The log is asked every time; and the append of a command looks again."""

    def __init__(self, commands: Commands, vault: Vault, passwords: Passwords, tokens: Tokens) -> None:
        self._commands = commands
        self._vault = vault
        self._passwords = passwords
        self._tokens = tokens
        # Asked for in place of whoever is not there, so that it takes as long.
        self._nobody = uuid4()
        self._nothing = Sealed(uuid4(), "A" * 134)

    async def login(self, email: str, password: str, caller: Caller) -> LoggedIn:
        """A token for whoever has this password.

        Raises:
            BadCredentials: nobody has, or not any more.
            HashingBusy: too many wait for their password to be checked.
            StoreBusy, StoreUnavailable: the login could not be recorded now.
        """
        user_id, user = await self._user_of(email)
        known = await self._vault.open_one(PASSWORD, user.password or self._nothing)
        verified = await self._passwords.verify(password, known)
        if not verified.good or user.status != "active" or user.password is None:
            raise BadCredentials(WORDS)
        rehashed = await self._passwords.hash(password) if verified.outdated else None
        command = RecordLogin(user_id=user_id, verified=user.password, rehashed=rehashed)
        own = replace(caller, actor=users.actor_of(user_id), grant=None, credential=None)
        try:
            receipt = await self._commands.execute(record_login, command, own)
        except (NotFound, InvalidState) as error:  # Deactivated, or given another password, meanwhile.
            raise BadCredentials(WORDS) from error
        except Contended as error:  # which would be answered with 409, and of a login there is nothing to look at again
            raise StoreBusy("others changed this user at the same moment", retry_after_s=1) from error
        token, expires_at = self._tokens.issue(user_id, receipt.state.generation)
        return LoggedIn(token, expires_at, user_id, receipt)

    async def principal_of_token(self, token: str) -> Identified:
        """
        Raises:
            NotAuthenticated: it is not ours, it has expired, or it was taken back.
        """
        claims = self._tokens.verify(token)
        user = await self._state(users.AGGREGATE, claims.user_id)
        users.require_live(user, claims.generation)
        credential = Credential(claims.user_id, claims.generation)
        return Identified(users.actor_of(claims.user_id), Rights(user.role), credential)

    async def principal_of_key(self, key: str) -> Identified:
        """
        Raises:
            NotAuthenticated: it is not ours, it has expired, or it was taken back; or its owner may no longer do what
                the key could.
        """
        prefix, secret = api_keys.parsed(key)
        key_id = api_keys.key_id(prefix)
        state = await self._state(api_keys.AGGREGATE, key_id)
        digest = hashlib.sha256(secret).hexdigest()
        if state.owner is None or not hmac.compare_digest(digest, state.hash):
            raise NotAuthenticated("no such API key")
        owner = await self._state(users.AGGREGATE, state.owner)
        rights = api_keys.require_live(state, owner, datetime.now(UTC))
        return Identified(users.actor_of(state.owner), rights, Credential(state.owner, owner.generation, key_id))

    async def _user_of(self, email: str) -> tuple[UUID, User]:
        """The user who registered this email; where there is none, one without a status, after the same questions."""
        try:
            person = emails.normalised(email)
        except Invalid:
            person = ""
        subject = await self._vault.subject_of(person)
        claim_id = emails.claim_id(subject or self._nobody)
        claim, _, _ = await self._commands.state(emails.AGGREGATE, claim_id, read_tail=True)
        user_id = claim.user_id or self._nobody
        user, _, _ = await self._commands.state(users.AGGREGATE, user_id, read_tail=True)
        return user_id, user

    async def _state(self, aggregate: Aggregate[S], stream_id: UUID) -> S:
        try:
            return await self._commands.today(aggregate, stream_id)
        except NotFound as error:
            raise NotAuthenticated("nobody we know") from error
