"""Commands on API keys. The secret itself never comes here: only its digest does."""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from ..domain import api_keys, users
from ..domain.access import Rights, Role, require_own
from ..domain.api_keys import ApiKey
from .transaction import Loaded, Transaction


class IssueApiKey(Struct, frozen=True, kw_only=True):
    """Attributes:
    owner_id: the user whose key it will be.
    issuer: what the one who issues it may do himself.
    scopes: the permissions that it is narrowed to; None: all of the role's.
    prefix, secret_sha256: of the key's text, see api_keys.text_of().
    """

    name: str
    owner_id: UUID
    issuer: Rights
    role: Role
    scopes: frozenset[str] | None
    expires_at: datetime
    prefix: str
    secret_sha256: str


class RevokeApiKey(Struct, frozen=True, kw_only=True):
    key_id: UUID


async def issue_api_key(tx: Transaction, command: IssueApiKey) -> Loaded[ApiKey]:
    grant = tx.caller.grant
    if grant is not None:
        owner = users.actor_of(command.owner_id)
        require_own(grant.reach, owner=owner, actor=tx.caller.actor, permission=grant.permission)
    key = await tx.create(api_keys.AGGREGATE, api_keys.key_id(command.prefix))
    events = api_keys.issue(
        key.state,
        name=command.name,
        owner_id=command.owner_id,
        owner_state=await tx.look(users.AGGREGATE, command.owner_id),
        issuer=command.issuer,
        role=command.role,
        scopes=command.scopes,
        expires_at=command.expires_at,
        prefix=command.prefix,
        secret_sha256=command.secret_sha256,
        by=tx.caller.actor,
        now=tx.caller.now,
    )
    return tx.say(key, events)


async def revoke_api_key(tx: Transaction, command: RevokeApiKey) -> Loaded[ApiKey]:
    key = await tx.load(api_keys.AGGREGATE, command.key_id)
    return tx.say(key, api_keys.revoke(key.state, by=tx.caller.actor, now=tx.caller.now))
