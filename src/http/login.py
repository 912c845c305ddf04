"""Logging in and out, and who one is. What hands out a secret takes no Idempotency-Key: an answer is kept nowhere."""

from datetime import datetime
from typing import Annotated, Any, Literal

from litestar import Controller, Request, Response, get, post
from litestar.params import JSONBody
from msgspec import Meta, Struct

from ..commands import users as commands
from ..commands.authentication import BadCredentials, LoggedIn
from ..domain import users
from ..domain.access import Role
from ..domain.kernel import Caller, Credential, Forbidden, InvalidState
from .auth import admitted, takes
from .limits import check_login, login_succeeded
from .manners import Asks, Parts, caller_of, decided, gone
from .problems import Malformed
from .services import Services
from .users import NewPassword, UserView, hash_for, view_of

AnyRequest = Request[Any, Any, Any]
Typed = Annotated[str, Meta(max_length=users.PASSWORD_CHARS_MAX)]  # what one may try, whatever it is worth


class Credentials(Struct, frozen=True, forbid_unknown_fields=True):
    email: Typed
    password: Typed

    def __repr__(self) -> str:
        return "Credentials(…)"


class OwnPasswordAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    current_password: the one until now: a token that somebody left lying about is not enough.
    """

    current_password: Typed
    password: NewPassword

    def __repr__(self) -> str:
        return "OwnPasswordAsked(…)"


class TokenView(Struct, frozen=True, kw_only=True):
    """Attributes:
    token: to be sent as `Authorization: Bearer <token>`, until `expires_at` or the next logout.
    """

    token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  # the name of the scheme
    expires_at: datetime
    user: UserView


class Me(Struct, frozen=True, kw_only=True):
    """Who asks.

    Attributes:
        scopes: the permissions that an API key is narrowed to; null: all of the role's.
        user: null where authentication is off.
    """

    actor: str
    role: Role
    scopes: list[str] | None
    user: UserView | None


class LoginController(Controller):
    path = "/v1/auth"
    tags = ("users",)

    @post("/login", status_code=200, summary="Email and password for a token", opt=takes(None), refuses=(401, 429, 503))
    async def login(self, request: AnyRequest, services: Parts, data: JSONBody[Credentials]) -> Response[TokenView]:
        logged_in = await log_in(request, services, data)
        receipt = logged_in.receipt
        user = await view_of(services, logged_in.user_id, receipt.state, receipt.version)
        return decided(receipt, TokenView(token=logged_in.token, expires_at=logged_in.expires_at, user=user))

    @post("/logout", status_code=204, summary="End every token that one has", opt=takes("self:write"))
    async def logout(self, request: AnyRequest, services: Parts, caller: Asks) -> Response[None]:
        credential = _credential(request)
        command = commands.RevokeTokens(user_id=credential.user_id, generation=credential.generation)
        return gone(await services.commands.execute(commands.revoke_tokens, command, caller))

    @get("/me", summary="Who one is", opt=takes("self:read"))
    async def me(self, request: AnyRequest, services: Parts) -> Me:
        principal = admitted(request).principal
        user = None
        if principal.credential is not None:
            user_id = principal.credential.user_id
            state, version, _ = await services.commands.state(users.AGGREGATE, user_id, read_tail=False)
            user = await view_of(services, user_id, state, version)
        scopes = principal.rights.scopes
        return Me(
            actor=principal.actor,
            role=principal.rights.role,
            scopes=None if scopes is None else sorted(scopes),
            user=user,
        )

    @post(
        "/password",
        status_code=200,
        summary="Change one's own password",
        opt=takes("self:write"),
        refuses=(409, 429, 503),
    )
    async def change_password(
        self, request: AnyRequest, services: Parts, data: JSONBody[OwnPasswordAsked]
    ) -> Response[UserView]:
        caller = unkeyed(request, services)
        credential = _credential(request)
        if credential.key_id is not None:
            raise Forbidden("log in with the password to change it")
        user, _, _ = await services.commands.state(users.AGGREGATE, credential.user_id, read_tail=True)
        email = await services.vault.open_one(commands.EMAIL, user.email)
        await check_login(services, request, email or "")
        known = await services.vault.open_one(commands.PASSWORD, user.password)
        if not (await services.passwords.verify(data.current_password, known)).good:
            raise BadCredentials("the current password is another one")
        command = commands.SetPassword(
            user_id=credential.user_id, password_hash=await hash_for(services, user, data.password)
        )
        receipt = await services.commands.execute(commands.set_password, command, caller)
        return decided(receipt, await view_of(services, receipt.stream_id, receipt.state, receipt.version))


async def log_in(request: AnyRequest, services: Services, given: Credentials) -> LoggedIn:
    """
    Raises:
        BadCredentials: nobody has them.
        TooManyRequests, HashingBusy: try again later.
        Malformed: with an Idempotency-Key.
    """
    caller = unkeyed(request, services)
    address = await check_login(services, request, given.email)
    logged_in = await services.authentication.login(given.email, given.password, caller)
    request.scope["state"]["actor"] = users.actor_of(logged_in.user_id)
    await login_succeeded(services, address, given.email)
    return logged_in


def unkeyed(request: AnyRequest, services: Services) -> Caller:
    """The caller of a route that hands out a secret, or takes one that must not be kept.

    Raises:
        Malformed: there is an Idempotency-Key. The answer could not be given again, and doing it twice is harmless.
    """
    if "idempotency-key" in request.headers:
        raise Malformed("this route takes no Idempotency-Key: what it answers is said once")
    return caller_of(request, services, b"")


def _credential(request: AnyRequest) -> Credential:
    credential = admitted(request).principal.credential
    if credential is None:
        raise InvalidState("authentication is off: nobody is logged in")
    return credential
