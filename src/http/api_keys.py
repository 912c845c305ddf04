"""API keys at the door. The key itself is in one answer, the first, and nowhere else."""

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar
from uuid import UUID

from litestar import Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from ..commands import api_keys as commands
from ..domain import api_keys
from ..domain.access import Role
from ..domain.api_keys import ApiKey
from ..domain.kernel import Aggregate, Invalid, NotFound
from ..projections import api_keys as projection
from .auth import admitted, takes
from .login import unkeyed
from .manners import (
    PAGE_ROWS_DEFAULT,
    After,
    Asks,
    Limit,
    Listing,
    Owner,
    Parts,
    Reads,
    Versions,
    decided,
    found,
    gone,
    listed,
    shown,
)
from .nouns import NounController

LIFETIME_DEFAULT = timedelta(days=90)
SCOPES_MAX = 100


class ApiKeyAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """A new key.

    Attributes:
        role: at most what its owner may do; without it one's own.
        scopes: the permissions that it is narrowed to, such as `jobs:write`; without them all of the role's.
        expires_at: at most 366 days from now; without it 90 days from now.
        owner_id: whose it is; without it one's own.
    """

    name: Annotated[str, Meta(min_length=1, max_length=api_keys.NAME_CHARS_MAX)]
    role: Role | None = None
    scopes: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=SCOPES_MAX)] | None = None
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    owner_id: UUID | None = None


class ApiKeyView(Struct, frozen=True, kw_only=True):
    """A key without its secret.

    Attributes:
        prefix: what its text begins with, after `sl_`.
    """

    id: UUID
    name: str
    owner_id: UUID
    role: Role
    scopes: list[str] | None
    prefix: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    version: int


class IssuedApiKey(ApiKeyView, frozen=True, kw_only=True):
    """Attributes:
    key: the key. It is said here and never again.
    """

    key: str


def _view(key_id: UUID, key: ApiKey, version: int) -> ApiKeyView:
    scopes = None if key.scopes is None else sorted(key.scopes)
    return shown(ApiKeyView, key, id=key_id, version=version, owner_id=key.owner, scopes=scopes)


def _view_of(row: projection.ApiKeyRow) -> ApiKeyView:
    return shown(ApiKeyView, row, id=row.key_id, owner_id=row.owner)


class ApiKeyController(NounController):
    path = "/v1/api-keys"
    opt = takes("keys:read", owned=api_keys.AGGREGATE)
    tags = ("users",)
    aggregate: ClassVar[Aggregate[Any]] = api_keys.AGGREGATE

    @post("/", summary="Issue an API key", access="keys:write", refuses=(404, 409))
    async def issue(
        self, request: Request[Any, Any, Any], services: Parts, data: JSONBody[ApiKeyAsked]
    ) -> Response[IssuedApiKey]:
        caller = unkeyed(request, services)
        principal = admitted(request).principal
        owner_id = data.owner_id or (principal.credential.user_id if principal.credential is not None else None)
        if owner_id is None:
            raise Invalid("owner_id: authentication is off, so a key is nobody's own; name its owner")
        prefix, secret = secrets.token_hex(api_keys.PREFIX_BYTES), secrets.token_bytes(api_keys.SECRET_BYTES)
        command = commands.IssueApiKey(
            name=data.name,
            owner_id=owner_id,
            issuer=principal.rights,
            role=data.role or principal.rights.role,
            scopes=None if data.scopes is None else frozenset(data.scopes),
            expires_at=data.expires_at or caller.now + LIFETIME_DEFAULT,
            prefix=prefix,
            secret_sha256=hashlib.sha256(secret).hexdigest(),
        )
        receipt = await services.commands.execute(commands.issue_api_key, command, caller)
        view = _view(receipt.stream_id, receipt.state, receipt.version)
        body = shown(IssuedApiKey, view, key=api_keys.text_of(prefix, secret))
        return decided(receipt, body, status_code=201)

    @get("/", summary="API keys")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[ApiKeyView]]:
        page = await projection.page(reads, owner=owner, after=after, limit=limit)
        items = [_view_of(row) for row in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/{key_id:uuid}", summary="One API key")
    async def one(self, reads: Reads, key_id: FromPath[UUID]) -> Response[ApiKeyView]:
        row, position = await reads.get(projection.API_KEYS, key_id)
        if row is None:
            raise NotFound("no such API key")
        return found(_view_of(row), position, version=row.version)

    @delete("/{key_id:uuid}", status_code=204, summary="Revoke an API key", access="keys:write")
    async def revoke(self, services: Parts, caller: Asks, versions: Versions, key_id: FromPath[UUID]) -> Response[None]:
        command = commands.RevokeApiKey(key_id=key_id)
        return gone(await services.commands.execute(commands.revoke_api_key, command, caller, versions=versions))
