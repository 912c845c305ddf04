"""The paths of the food-lots service that have to do with who asks: login and health."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.params import JSONBody
from msgspec import Meta, Struct

from ...domain.access import Role
from ..auth import takes
from ..login import Credentials, log_in
from ..manners import Parts, decided
from ..problems import Facade
from ..users import view_of

# What that service says where the natives say something finer; it knows nothing of 400.
FACADE = Facade(
    ("/api/login", "/api/health"),
    dict.fromkeys(("malformed_json", "rule_violated", "unsupported_media_type"), 422),
    lists=frozenset({"validation_failed", "malformed_json", "rule_violated", "unsupported_media_type"}),
)


class LoginAsked(Struct, frozen=True):
    """Attributes:
    email, password: what else comes along is not looked at, as these clients are used to.
    """

    email: Annotated[str, Meta(max_length=1_024)]
    password: Annotated[str, Meta(max_length=1_024)]

    def __repr__(self) -> str:
        return "LoginAsked(…)"


class UserAnswer(Struct, frozen=True, kw_only=True):
    id: UUID
    email: str | None
    full_name: str | None
    role: Role
    created_at: datetime
    last_login: datetime | None


class LoginAnswer(Struct, frozen=True):
    """Attributes:
    token: to be sent as `Authorization: Bearer <token>`.
    """

    user: UserAnswer
    token: str


class Health(Struct, frozen=True):
    status: Literal["ok"]
    timestamp: datetime


@post(
    "/api/login",
    tags=["food lots"],
    status_code=200,
    summary="Log in",
    opt=takes(None),
    refuses=(401, 429, 503),
)
async def login(request: Request[Any, Any, Any], services: Parts, data: JSONBody[LoginAsked]) -> Response[LoginAnswer]:
    logged_in = await log_in(request, services, Credentials(data.email, data.password))
    receipt = logged_in.receipt
    user = await view_of(services, logged_in.user_id, receipt.state, receipt.version)
    answer = UserAnswer(
        id=user.id,
        email=user.email,
        full_name=user.full_name,
        role=user.role,
        created_at=user.created_at,
        last_login=user.last_login_at,
    )
    return decided(receipt, LoginAnswer(answer, logged_in.token))


@get("/api/health", tags=["food lots"], summary="Health", opt=takes(None))
async def health() -> Health:
    return Health("ok", datetime.now(UTC))


ROUTES = (login, health)
