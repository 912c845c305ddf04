"""The seeds' stack, as well as we can write it: FastAPI, SQLAlchemy (async, asyncpg) and SAQ; one route, which takes
a job.

It does what our door does for the same request: the token is verified and its user looked up, the body validated, the
Idempotency-Key claimed with a digest of the body, job and audit record inserted, all in one transaction; then the job
goes to the queue. Statements are SQLAlchemy's Core with its caches, not the slower unit of work; answers are
serialized by pydantic; the middleware is plain ASGI. What our door does beyond that is left out: metrics, a limit of
waiting jobs, a gap-free log.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import jwt
from fastapi import Body, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue
from sqlalchemy import BigInteger, ForeignKey, Identity, Index, bindparam, insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONNECTIONS = 16  # with 8 to 128 its CPU time for an answer was least here; a core is full long before
ISSUER = AUDIENCE = "peer"
ROLES = frozenset({"ADMIN", "MANAGER", "OPERATOR"})
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    is_active: Mapped[bool]


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_by_status", "status", "created_at"),)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    kind: Mapped[str]
    status: Mapped[str]
    params: Mapped[dict[str, Any]] = mapped_column(JSONB)
    session_id: Mapped[UUID | None]
    priority: Mapped[int]
    timeout_s: Mapped[int]
    attempts_max: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(postgresql.TIMESTAMP(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(postgresql.TIMESTAMP(timezone=True))


class IdempotencyKey(Base):
    __tablename__ = "idempotency_keys"
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[bytes]
    job_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(postgresql.TIMESTAMP(timezone=True))


class AuditRecord(Base):
    __tablename__ = "audit_records"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(postgresql.TIMESTAMP(timezone=True))
    actor: Mapped[UUID]
    action: Mapped[str]
    subject_id: Mapped[UUID]
    request_id: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)


FIND_USER = select(User.id, User.role, User.is_active).where(User.id == bindparam("user_id"))
CLAIM_KEY = postgresql.insert(IdempotencyKey).on_conflict_do_nothing().returning(IdempotencyKey.job_id)
FIND_KEY = select(IdempotencyKey.body_sha256, IdempotencyKey.job_id).where(
    IdempotencyKey.user_id == bindparam("user_id"), IdempotencyKey.key == bindparam("key")
)
FIND_JOB = select(Job.__table__).where(Job.id == bindparam("job_id"))
INSERT_JOB = insert(Job)
INSERT_AUDIT = insert(AuditRecord)


class NoopParams(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    sleep_s: Annotated[float, Field(ge=0, le=600)] = 0.0
    fail: bool = False


class JobAsked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["noop"]
    inputs: Annotated[list[UUID], Field(max_length=0)] = []
    params: NoopParams = NoopParams()
    session_id: UUID | None = None
    model_version_id: UUID | None = None
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    timeout_s: Annotated[int, Field(ge=1, le=86_400)] = 600
    attempts_max: Annotated[int, Field(ge=1, le=20)] = 3


class JobView(BaseModel):
    id: UUID
    kind: str
    owner: str
    status: str
    progress: int = 0
    message: str = ""
    inputs: list[UUID] = []
    params: dict[str, Any]
    session_id: UUID | None
    model_version_id: UUID | None = None
    model_sha256: str | None = None
    priority: int
    timeout_s: int
    attempts_max: int
    attempt: int = 0
    worker: str | None = None
    not_before: datetime | None = None
    cancel_requested: bool = False
    dead_letter: bool = False
    error_code: str | None = None
    error_message: str = ""
    manifest: dict[str, Any] = {}
    timings: dict[str, float] = {}
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    version: int = 1


class Ids:
    """Around every request: its id and the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode("latin-1")[:128] or str(uuid4())
        scope.setdefault("state", {})["request_id"] = request_id

        async def marking(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, marking)


def token_for(user_id: UUID, secret: str) -> str:
    now = datetime.now(UTC)
    claims = {"sub": str(user_id), "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + timedelta(hours=1)}
    return jwt.encode(claims, secret, algorithm="HS256")


engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=CONNECTIONS, max_overflow=0)
queue = RedisQueue(Redis.from_url(os.environ["REDIS_URL"]))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await queue.connect()
    yield
    await queue.disconnect()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(Ids)
bearer = HTTPBearer()


async def user_id_of(shown: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> UUID:
    try:
        claims = jwt.decode(
            shown.credentials,
            os.environ["SECRET_KEY"],
            algorithms=["HS256"],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": ["exp", "iat", "aud", "iss", "sub"]},
        )
        return UUID(claims["sub"])
    except (jwt.InvalidTokenError, ValueError) as error:
        raise HTTPException(401, "not authenticated") from error


@app.get("/livez")
async def livez() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/jobs", status_code=201)
async def submit(  # as FastAPI wants it: one parameter for each thing of the request
    request: Request,
    response: Response,
    user_id: Annotated[UUID, Depends(user_id_of)],
    asked: Annotated[JobAsked, Body()],
    idempotency_key: Annotated[str, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")],
) -> JobView:
    now = datetime.now(UTC)
    digest = hashlib.sha256(await request.body()).digest()
    row: dict[str, Any] = {
        "id": uuid4(),
        "owner_id": user_id,
        "status": "pending",
        "created_at": now,
        "updated_at": now,
        **asked.model_dump(include={"kind", "params", "session_id", "priority", "timeout_s", "attempts_max"}),
    }
    async with engine.begin() as connection:
        user = (await connection.execute(FIND_USER, {"user_id": user_id})).one_or_none()
        if user is None or not user.is_active:
            raise HTTPException(401, "not authenticated")
        if user.role not in ROLES:
            raise HTTPException(403, "not allowed", headers={"X-Required-Roles": ", ".join(sorted(ROLES))})
        key = {"user_id": user_id, "key": idempotency_key}
        claim = {**key, "body_sha256": digest, "job_id": row["id"], "created_at": now}
        fresh = (await connection.execute(CLAIM_KEY, claim)).one_or_none() is not None
        if fresh:
            await _insert(connection, row, request.state.request_id)
        else:
            row = await _first(connection, key, digest)
    if fresh:
        await queue.enqueue("run_job", key=str(row["id"]), job_id=str(row["id"]), timeout=row["timeout_s"])
    response.headers["Location"] = f"/v1/jobs/{row['id']}"
    response.headers["ETag"] = '"1"'
    return JobView(owner=str(row["owner_id"]), **row)


async def _insert(connection: AsyncConnection, row: dict[str, Any], request_id: str) -> None:
    await connection.execute(INSERT_JOB, row)
    told = {"at": row["created_at"], "actor": row["owner_id"], "action": "job.submitted", "subject_id": row["id"]}
    data = {name: row[name] for name in ("kind", "params", "priority", "timeout_s", "attempts_max")}
    await connection.execute(INSERT_AUDIT, {**told, "request_id": request_id, "data": data})


async def _first(connection: AsyncConnection, key: dict[str, Any], digest: bytes) -> dict[str, Any]:
    """The job that the key led to before."""
    found = (await connection.execute(FIND_KEY, key)).one()
    if found.body_sha256 != digest:
        raise HTTPException(422, "the same key was sent with another request")
    return dict((await connection.execute(FIND_JOB, {"job_id": found.job_id})).mappings().one())


async def prepare(user_id: UUID) -> None:
    """Make the tables, and one user."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(User), {"id": user_id, "email": "a@b.c", "role": "OPERATOR", "is_active": True})
    await engine.dispose()


if __name__ == "__main__":
    first = uuid4()
    asyncio.run(prepare(first))
    print(token_for(first, os.environ["SECRET_KEY"]))  # for whoever measures
