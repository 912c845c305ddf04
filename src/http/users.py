"""Users at the door. What is sealed of them is opened for the answer, and null once the person was erased."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from ..adapters.ids import uuid7
from ..commands import users as commands
from ..commands.transact import Receipt
from ..domain import emails, users
from ..domain.access import Role
from ..domain.kernel import Aggregate, NotFound
from ..domain.users import User
from ..projections import users as projection
from .auth import takes
from .manners import (
    PAGE_ROWS_DEFAULT,
    After,
    Asks,
    At,
    Limit,
    Listing,
    Parts,
    Reads,
    Versions,
    decided,
    found,
    listed,
    shown,
)
from .nouns import NounController, as_of
from .services import Services

EmailText = Annotated[str, Meta(min_length=3, max_length=emails.EMAIL_CHARS_MAX)]
NewPassword = Annotated[str, Meta(min_length=users.PASSWORD_CHARS_MIN, max_length=users.PASSWORD_CHARS_MAX)]


class UserAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """A new user.

    Attributes:
        password: 12 to 1,024 characters, and not the email.
    """

    email: EmailText
    full_name: Annotated[str, Meta(min_length=1, max_length=users.FULL_NAME_CHARS_MAX)]
    role: Role
    password: NewPassword

    def __repr__(self) -> str:
        return "UserAsked(…)"


class RoleAsked(Struct, frozen=True, forbid_unknown_fields=True):
    role: Role


class PasswordAsked(Struct, frozen=True, forbid_unknown_fields=True):
    password: NewPassword

    def __repr__(self) -> str:
        return "PasswordAsked(…)"


class UserView(Struct, frozen=True, kw_only=True):
    """Who may ask.

    Attributes:
        email, full_name: null where the person was erased.
    """

    id: UUID
    email: str | None
    full_name: str | None
    role: Role
    status: users.Status
    created_at: datetime
    last_login_at: datetime | None
    version: int


async def view_of(services: Services, user_id: UUID, user: User, version: int) -> UserView:
    """A user as the commands know him."""
    email = await services.vault.open_one(commands.EMAIL, user.email)
    full_name = await services.vault.open_one(commands.FULL_NAME, user.full_name)
    return shown(UserView, user, id=user_id, version=version, email=email, full_name=full_name)


async def _views(services: Services, rows: Sequence[projection.UserRow]) -> list[UserView]:
    emails_ = await services.vault.open_many(commands.EMAIL, [row.email for row in rows])
    names = await services.vault.open_many(commands.FULL_NAME, [row.full_name for row in rows])
    return [
        shown(UserView, row, id=row.user_id, email=email, full_name=name)
        for row, email, name in zip(rows, emails_, names, strict=True)
    ]


async def _answer(services: Services, receipt: Receipt[User], *, status_code: int = 200) -> Response[UserView]:
    body = await view_of(services, receipt.stream_id, receipt.state, receipt.version)
    return decided(receipt, body, status_code=status_code)


class UserController(NounController):
    path = "/v1/users"
    opt = takes("users:read")
    tags = ("users",)
    aggregate: ClassVar[Aggregate[Any]] = users.AGGREGATE

    @post("/", summary="Register a user", access="users:write", refuses=(503,))
    async def create(self, services: Parts, caller: Asks, data: JSONBody[UserAsked]) -> Response[UserView]:
        password = users.require_password(data.password, email=emails.normalised(data.email))
        command = commands.RegisterUser(
            user_id=uuid7(),
            email=data.email,
            full_name=data.full_name,
            role=data.role,
            password_hash=await services.passwords.hash(password),
        )
        receipt = await services.commands.execute(commands.register_user, command, caller)
        return await _answer(services, receipt, status_code=201)

    @get("/", summary="Users, oldest first")
    async def page(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        reads: Reads,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[UserView]]:
        page = await projection.page(reads, after=after, limit=limit)
        items = await _views(services, page.rows)
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/{user_id:uuid}", summary="One user, now or then")
    async def one(self, services: Parts, reads: Reads, user_id: FromPath[UUID], at: At = None) -> Response[UserView]:
        if at is not None:
            then = await as_of(services, users.AGGREGATE, user_id, at)
            body = await view_of(services, user_id, then.state, then.version)
            return found(body, then.position, version=then.version)
        row, position = await reads.get(projection.USERS, user_id)
        if row is None:
            raise NotFound("no such user")
        [body] = await _views(services, [row])
        return found(body, position, version=row.version)

    @post("/{user_id:uuid}/role", status_code=200, summary="Give a user another role", access="users:write")
    async def change_role(
        self, services: Parts, caller: Asks, versions: Versions, user_id: FromPath[UUID], data: JSONBody[RoleAsked]
    ) -> Response[UserView]:
        command = commands.ChangeRole(user_id=user_id, role=data.role)
        receipt = await services.commands.execute(commands.change_role, command, caller, versions=versions)
        return await _answer(services, receipt)

    @post(
        "/{user_id:uuid}/password",
        status_code=200,
        summary="Set a user's password",
        access="users:write",
        refuses=(503,),
    )
    async def set_password(
        self, services: Parts, caller: Asks, versions: Versions, user_id: FromPath[UUID], data: JSONBody[PasswordAsked]
    ) -> Response[UserView]:
        user, _, _ = await services.commands.state(users.AGGREGATE, user_id, read_tail=True)
        users.require_active(user)
        command = commands.SetPassword(user_id=user_id, password_hash=await hash_for(services, user, data.password))
        receipt = await services.commands.execute(commands.set_password, command, caller, versions=versions)
        return await _answer(services, receipt)

    @post("/{user_id:uuid}/deactivate", status_code=200, summary="Deactivate a user for good", access="users:write")
    async def deactivate(
        self, services: Parts, caller: Asks, versions: Versions, user_id: FromPath[UUID]
    ) -> Response[UserView]:
        command = commands.DeactivateUser(user_id=user_id)
        receipt = await services.commands.execute(commands.deactivate_user, command, caller, versions=versions)
        return await _answer(services, receipt)


async def hash_for(services: Services, user: User, password: str) -> str:
    """The hash of a new password for this user.

    Raises:
        Invalid: it may not be his.
        HashingBusy: too many wait.
    """
    email = await services.vault.open_one(commands.EMAIL, user.email)
    return await services.passwords.hash(users.require_password(password, email=email or ""))
