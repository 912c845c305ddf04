"""Who may do what: roles, permissions, and how far each reaches.

A permission is `noun:verb`. A route names one; a role grants it for what its holder owns, or for all of them. An API
key may narrow its holder's permissions, never widen them.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from msgspec import Struct

from .kernel import Credential, Forbidden, Reach, Rejection

__all__ = ["Credential", "Reach"]


class Role(StrEnum):
    ADMIN = "ADMIN"
    MANAGER = "MANAGER"
    AUDITOR = "AUDITOR"
    OPERATOR = "OPERATOR"
    VIEWER = "VIEWER"


# What people own, and what belongs to all.
_OWNED = ("assets", "sessions", "jobs", "webhooks")
_SHARED_READS = ("models:read", "queues:read")
_SELF: Mapping[str, Reach] = {
    "self:read": "any",
    "self:write": "any",
    "trace:read": "own",
    "keys:read": "own",
    "keys:write": "own",
    "quotas:read": "own",
}
_MANAGED = (
    "models:write",
    "models:activate",
    "models:infer",
    "jobs:requeue",
    "queues:write",
    "trace:read",
    "analytics:read",
    "projections:read",
)
_AUDITED = ("audit:read", "trace:read", "analytics:read", "projections:read", "users:read", "keys:read", "quotas:read")
_ADMINISTERED = ("projections:write", "users:write", "keys:write", "quotas:write", "audit:export", "limits:lift")


def _each(nouns: Iterable[str], verb: str, reach: Reach) -> dict[str, Reach]:
    return {f"{noun}:{verb}": reach for noun in nouns}


def _any(permissions: Iterable[str]) -> dict[str, Reach]:
    return dict.fromkeys(permissions, "any")


_WORK = _each(_OWNED, "read", "own") | _each(_OWNED, "write", "own") | _any(_SHARED_READS)

GRANTS: Mapping[Role, Mapping[str, Reach]] = {
    Role.VIEWER: {**_each(_OWNED, "read", "own"), **_any(_SHARED_READS), **_SELF},
    Role.OPERATOR: {**_WORK, **_SELF, "models:infer": "any"},
    Role.AUDITOR: {**_each(_OWNED, "read", "any"), **_any(_SHARED_READS), **_SELF, **_any((*_AUDITED, "audit:export"))},
    Role.MANAGER: {**_WORK, **_each(_OWNED, "read", "any"), **_SELF, **_any(_MANAGED)},
    Role.ADMIN: _any(
        (
            *_WORK,
            *_SELF,
            *_MANAGED,
            *_AUDITED,
            *_ADMINISTERED,
        )
    ),
}
PERMISSIONS = frozenset(GRANTS[Role.ADMIN])
# What a key can be narrowed to. Who makes users makes himself anything: that is no narrow key.
SCOPES = PERMISSIONS - {"users:write"}


class Rights(Struct, frozen=True):
    """What one caller may do.

    Attributes:
        role: that was granted.
        scopes: the permissions that an API key is narrowed to; None: all of the role's.
    """

    role: Role
    scopes: frozenset[str] | None = None

    def reach(self, permission: str) -> Reach | None:
        """How far the permission goes; None: not at all."""
        if self.scopes is not None and permission not in self.scopes:
            return None
        return GRANTS[self.role].get(permission)


class NotAllowed(Forbidden):
    """Some other role may."""

    def __init__(self, detail: str, roles: Iterable[Role]) -> None:
        super().__init__(detail)
        self.roles = tuple(roles)


class NotAuthenticated(Rejection):
    """Nobody we know, or nobody any more."""

    code = "not_authenticated"


def require(rights: Rights, permission: str) -> Reach:
    """How far `rights` reach.

    Raises:
        NotAllowed: they do not.
    """
    reach = rights.reach(permission)
    if reach is None:
        raise NotAllowed(f"this takes the permission {permission}", roles_with(permission))
    return reach


def require_own(reach: Reach, *, owner: str, actor: str, permission: str) -> None:
    """Raises: NotAllowed: it is somebody else's, and the permission reaches the caller's own only."""
    if reach == "own" and owner != actor:
        raise NotAllowed("it belongs to somebody else", roles_with(permission, "any"))


def roles_with(permission: str, *reaches: Reach) -> list[Role]:
    """Roles that grant it, so far at least."""
    wanted = reaches or ("own", "any")
    return [role for role in Role if GRANTS[role].get(permission) in wanted]


def may_grant(granter: Role, role: Role) -> bool:
    """Whether `role` can do nothing, nowhere, that `granter` cannot."""
    mine = GRANTS[granter]
    return all(mine.get(permission) in {"any", reach} for permission, reach in GRANTS[role].items())
