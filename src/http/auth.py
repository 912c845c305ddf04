"""Who asks, and whether they may: every route declares its permission, and one guard holds it against the principal.

A route's declaration is its handler's options, which a controller may set for all of its handlers:

    access   the permission that it takes, `jobs:write`; None: it is for everybody
    owned    the aggregate that the first id in its path names, or a function from the path's parameters to it: whose
             it is decides, where the permission reaches the principal's own only. What a body names is looked at when
             the command loads it; see commands/transact.py.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from msgspec import Struct

from ..domain.access import NotAuthenticated, Rights, Role, require, require_own
from ..domain.kernel import Aggregate, Credential, Grant, NotFound
from .services import Services

KEY_PREFIX = "sl_"

_BEARER = re.compile(r"[Bb]earer +([\x21-\x7e]{1,4096})")
_KEY = re.compile(r"[\x21-\x7e]{1,200}")

Owned = Aggregate[Any] | Callable[[Mapping[str, Any]], Aggregate[Any] | None]
AnyConnection = ASGIConnection[Any, Any, Any, Any]


def takes(permission: str | None, *, owned: Owned | None = None) -> dict[str, Any]:
    """The options of a controller, for handlers that do not say otherwise, or of a handler."""
    return {"access": permission, "owned": owned}


class Principal(Struct, frozen=True):
    """Attributes:
    actor: the name that events carry.
    credential: None where there was nothing to show: authentication is off, or the route is for everybody.
    """

    actor: str
    rights: Rights
    credential: Credential | None = None


class Admitted(Struct, frozen=True):
    """A principal at a route.

    Attributes:
        grant: None where the route is for everybody.
    """

    principal: Principal
    grant: Grant | None

    @property
    def owner(self) -> str | None:
        """Whose things may be listed; None: everybody's."""
        return self.principal.actor if self.grant is not None and self.grant.reach == "own" else None


LOCAL = Principal("local", Rights(Role.ADMIN))
ANYBODY = Principal("anonymous", Rights(Role.VIEWER, frozenset()))


class Guard:
    """Finds out who asks, and holds what his role and key may against what the route takes. Called by the application
    before each handler and before anything of the body is read, see _admission() in app.py; and by whoever serves an
    answer that goes on, who asks again and again.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._enabled = services.settings.auth_enabled

    async def __call__(self, connection: AnyConnection, handler: BaseRouteHandler) -> None:
        """Leave an Admitted in the request's state.

        Raises:
            NotAuthenticated: nobody we know.
            NotAllowed: somebody else may.
        """
        permission: str | None = None if is_automatic(handler) else handler.opt["access"]
        if permission is None:
            admitted = Admitted(ANYBODY if self._enabled else LOCAL, None)
        else:
            admitted = await self._admit(connection, handler, permission)
        connection.scope["state"].update(admitted=admitted, actor=admitted.principal.actor)

    async def _admit(self, connection: AnyConnection, handler: BaseRouteHandler, permission: str) -> Admitted:
        principal = await self.authenticate(connection.headers) if self._enabled else LOCAL
        connection.scope["state"]["actor"] = principal.actor
        reach = require(principal.rights, permission)
        owned: Owned | None = handler.opt.get("owned") if reach == "own" else None
        if callable(owned):
            owned = owned(connection.path_params)
        if owned is not None:
            await self._require_own(owned, connection.path_params, principal, permission)
        return Admitted(principal, Grant(permission, reach))

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Whoever the credential in these headers is of: `Authorization: Bearer`, or `X-API-Key`, not both.

        Raises:
            NotAuthenticated: there is none, there are two, or it is not good.
        """
        bearer, key = headers.get("authorization"), headers.get("x-api-key")
        if (bearer is None) == (key is None):
            raise NotAuthenticated("send a bearer token, or a key in X-API-Key, and not both")
        if bearer is not None:
            shown = _BEARER.fullmatch(bearer)
            if shown is None:
                raise NotAuthenticated("what Authorization holds is no bearer token")
            given = shown[1]
        else:
            given = key or ""
        if given.startswith(KEY_PREFIX) and _KEY.fullmatch(given):
            found = await self._services.authentication.principal_of_key(given)
        elif key is None:
            found = await self._services.authentication.principal_of_token(given)
        else:
            raise NotAuthenticated("X-API-Key is not a key of ours")
        return Principal(found.actor, found.rights, found.credential)

    async def _require_own(
        self, owned: Aggregate[Any], path_params: Mapping[str, Any], principal: Principal, permission: str
    ) -> None:
        """An owner never changes, so that a state from the cache will do. What is not there is the handler's to say."""
        stream_id = next(_ids(path_params.values()), None)
        if stream_id is None or owned.owner is None:
            return
        try:
            state, version, _ = await self._services.commands.state(owned, stream_id, read_tail=False)
        except NotFound:
            return
        if version:
            require_own("own", owner=owned.owner(state), actor=principal.actor, permission=permission)


def _ids(values: Iterable[Any]) -> Iterator[UUID]:
    for value in values:
        if isinstance(value, UUID):
            yield value
        elif isinstance(value, str):
            try:
                yield UUID(value)
            except ValueError:
                continue


def admitted(connection: AnyConnection) -> Admitted:
    """Who was admitted to the route that is being served."""
    found: Admitted = connection.scope["state"]["admitted"]
    return found


def require_declared(app: Litestar) -> None:
    """Raises: LookupError: a route does not say who may use it. Nothing is served then."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", (getattr(route, "route_handler", None),)):
            if handler is not None and "access" not in handler.opt and not is_automatic(handler):
                raise LookupError(f"{route.path} ({handler}) declares no access")


def is_automatic(handler: BaseRouteHandler) -> bool:
    """Litestar's own answer to OPTIONS, which tells the methods of a path and nothing else."""
    return getattr(handler, "http_methods", None) == {"OPTIONS"}
