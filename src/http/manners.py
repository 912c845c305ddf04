"""What every handler is given and every answer carries: callers, positions, versions, pages."""

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from litestar import Litestar, Request, Response
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter, SkipValidation
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send
from msgspec import Struct
from msgspec.structs import asdict

from ..adapters.ids import uuid7
from ..commands.transact import Receipt
from ..domain.kernel import Caller, Rejection, derived_id
from ..projections.projection import NotYetProjected, ReadModels
from .auth import admitted
from .canonical import is_text
from .cursors import EPOCH_CHARS, unmarked
from .moments import POSITION, TIME
from .patience import KEY_UNDER_WAY
from .problems import FieldError, FieldsRefused, Malformed
from .services import Services

POSITION_MAX = 2**63 - 1
STRICT_PATHS = "/v1/"  # a seed's clients may send what the seed ignored
PARAMETERS_MAX = 50
QUERY = "query_parameters"  # in a handler's options
PAGE_ROWS_MAX = 200
PAGE_ROWS_DEFAULT = 50
KEY_CHARS_MAX = 255
WAIT_MAX_S = 10
FRESH_WAIT_S = 2.0  # how long a seed's client, which knows nothing of positions, waits for its own writes

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
AnyRequest = Request[Any, Any, Any]

# How handlers declare what they are given. Litestar must not try to validate these.
Parts = NamedDependency[SkipValidation[Services]]
Asks = NamedDependency[SkipValidation[Caller]]
Reads = NamedDependency[SkipValidation[ReadModels]]
Owner = NamedDependency[SkipValidation[str | None]]
Versions = NamedDependency[SkipValidation[frozenset[int] | None]]

CURSOR = r"^[0-9]{1,18}(@[0-9a-f]{8})?$"

Limit = Annotated[int, QueryParameter(ge=1, le=PAGE_ROWS_MAX, description="Rows of one page.")]
After = Annotated[UUID | None, QueryParameter(description="The cursor that the page before gave as `next`.")]
AfterVersion = Annotated[str, QueryParameter(pattern=CURSOR, description="Events past this version.")]
At = Annotated[
    str | None,
    QueryParameter(
        max_length=40,
        description="The state as of a position, or of an RFC 3339 time with zone.",
        schema_extra={"one_of": [POSITION, TIME]},
    ),
]

_encode_json = msgspec.json.Encoder().encode
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?(?:$|[,;\s])')
_ETAG = re.compile(r'\s*(W/)?"([^"]*)"\s*')


class KeyInUse(Rejection):
    """The same Idempotency-Key is under way."""

    code = "idempotency_key_in_use"


class Listing(Struct, Generic[T], frozen=True):
    """One page. `next` is the cursor to pass as `after`; null at the end."""

    items: list[T]
    next: str | None = None


async def refuse_garbage(request: AnyRequest) -> None:
    """Before anything of a handler's is looked at.

    Raises:
        Malformed: the path or the query holds NUL, or is not UTF-8.
        FieldsRefused: the query has a parameter that this path does not know, or one of them twice.
    """
    raw_path, query = request.scope.get("raw_path") or b"", request.scope["query_string"]
    if not (is_text(raw_path) and is_text(query)):
        raise Malformed("paths and queries are UTF-8 without NUL")
    if query and request.scope["path"].startswith(STRICT_PATHS):
        _refuse_unknown(request)


def _refuse_unknown(request: AnyRequest) -> None:
    """A misspelt filter that is ignored answers a question that nobody asked."""
    known, lists = _parameters(request.scope["litestar_app"], request.route_handler)
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) > PARAMETERS_MAX:
        raise Malformed(f"a query has at most {PARAMETERS_MAX} parameters")
    wrong = [FieldError("no such parameter here", parameter=name) for name in sorted(set(names) - known)]
    wrong += [
        FieldError("sent more than once", parameter=name) for name in sorted(known - lists) if names.count(name) > 1
    ]
    if wrong:
        raise FieldsRefused(wrong)


def _parameters(app: Litestar, handler: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The query parameters of a handler and of its dependencies, and those of them that may come more than once.

    Looked up once for each handler, and kept in its options.
    """
    if QUERY not in handler.opt:
        maps = (getattr(route, "route_handler_map", {}).values() for route in app.routes)
        model = next(model for one in maps for known, model in one if known is handler)
        names = frozenset(parameter.field_alias for parameter in model.expected_query_params)
        handler.opt[QUERY] = names, frozenset(model.sequence_query_parameter_names)
    found: tuple[frozenset[str], frozenset[str]] = handler.opt[QUERY]
    return found


def wait_asked_s(request: AnyRequest) -> int | None:
    """The seconds of `Prefer: wait` (RFC 7240); None where nobody says how long he would wait."""
    waits = _WAIT.search(request.headers.get("prefer", ""))
    return int(waits[1]) if waits else None


def caller_of(request: AnyRequest, services: Services, content: bytes) -> Caller:
    """Who asks, and under which command id: with an Idempotency-Key, one that a repeat has as well.

    `content` is what the request brought, or a digest of it; a repeat must bring the same.
    """
    who = admitted(request)
    actor = who.principal.actor
    state = request.scope["state"]
    command_id, digests = uuid7(), [""]
    key = request.headers.get("idempotency-key")
    if key is not None:
        if _KEY.fullmatch(key) is None:
            raise Malformed(f"an Idempotency-Key has 1 to {KEY_CHARS_MAX} visible ASCII characters")
        command_id = derived_id("idempotency", actor, key)
        _claim(services.keys_under_way, command_id, state)
        scope = request.scope  # not request.url, which is made and parsed first
        head = f"{scope['method']}\0{scope['path']}\0".encode() + scope["query_string"] + b"\0"
        digests = [hmac.digest(key, head + content, "sha256").hex() for key in services.digest_keys]
    return Caller(
        actor=actor,
        now=now(),
        command_id=command_id,
        correlation_id=state["correlation_id"],
        causation_id=f"command:{command_id}",
        request_id=state["request_id"],
        request_digest=digests[0],
        earlier_digests=tuple(digests[1:]),
        grant=who.grant,
        credential=who.principal.credential,
    )


def _claim(under_way: set[UUID], command_id: UUID, state: dict[str, Any]) -> None:
    """While a request with a key has no answer, another one with it is told to wait. Only within this process; across
    processes the log still carries out one of them, and answers both.
    """
    if command_id in under_way and state.get(KEY_UNDER_WAY) != command_id:
        raise KeyInUse("the first request with this key is still being answered", retry_after_s=1)
    under_way.add(command_id)
    state[KEY_UNDER_WAY] = command_id


async def _caller(request: AnyRequest, services: Parts) -> Caller:
    return caller_of(request, services, await request.body())


def _owner(request: AnyRequest) -> str | None:
    """Whose things may be listed; None: everybody's."""
    return admitted(request).owner


def _versions(request: AnyRequest) -> frozenset[int] | None:
    """If-Match as the versions that it allows; none where any will do. A weak or foreign tag allows no version."""
    given = request.headers.get("if-match")
    if given is None or given.strip() == "*":
        return None
    tags = [_ETAG.fullmatch(one) for one in given.split(",")]
    if not all(tags):
        raise Malformed("If-Match is a list of entity tags in quotes, or *")
    return frozenset(int(tag[2]) for tag in tags if tag and not tag[1] and re.fullmatch(r"[0-9]{1,18}", tag[2]))


async def _reads(request: AnyRequest, services: Parts) -> ReadModels:
    """The read models, once they reflect the position that the client asks for.

    Raises:
        NotYetProjected: not within the seconds of `Prefer: wait`.
        EpochChanged: the position is of the log before a restore.
    """
    wanted = request.headers.get("min-position")
    if wanted is not None:
        if re.fullmatch(CURSOR, wanted) is None:
            raise Malformed("Min-Position is a position, a whole number, or one with its epoch: 42@1a2b3c4d")
        timeout_s = min(wait_asked_s(request) or 0, WAIT_MAX_S)
        position = int(wanted.partition("@")[0])
        if "@" in wanted:
            unmarked(wanted, (await services.store.reader.head()).epoch)
        await services.reads.wait_for(position, timeout_s=timeout_s)
        if "@" in wanted:  # The log may have been restored, and have grown so far again, while we waited.
            unmarked(wanted, (await services.store.reader.head()).epoch)
    return services.reads


async def fresh_reads(services: Parts) -> ReadModels:
    """The read models with everything in them that was in the log when the request came, for clients that pass no
    Min-Position. Where they lag by more than FRESH_WAIT_S, as they are: old is better than nothing.
    """
    head = await services.store.reader.head()
    with suppress(NotYetProjected):
        await services.reads.wait_for(head.position, timeout_s=FRESH_WAIT_S)
    return services.reads


def dependencies(services: Services) -> dict[str, Provide]:
    """By the names under which handlers ask for them."""

    def provide_services() -> Services:
        return services

    return {
        "services": Provide(provide_services, sync_to_thread=False),
        "caller": Provide(_caller),
        "owner": Provide(_owner, sync_to_thread=False),
        "versions": Provide(_versions, sync_to_thread=False),
        "reads": Provide(_reads),
    }


def log_epoch(services: Services) -> Callable[[Response[Any]], Awaitable[Response[Any]]]:
    """Beside every position the epoch that it belongs to: `<Event-Position>@<Log-Epoch>` means the same log or none."""

    # Nothing in it waits; but what is not async runs in a thread, which each answer would wait for.
    async def mark(response: Response[Any]) -> Response[Any]:
        epoch = services.store.writer.epoch
        if epoch is not None and "Event-Position" in response.headers:
            response.headers["Log-Epoch"] = epoch.hex[:EPOCH_CHARS]
        return response

    return mark


def now() -> datetime:
    return datetime.now(UTC)


def shown(view: type[S], *sources: Struct, **more: Any) -> S:
    """A view filled from structs that have fields of the same names, later ones over earlier ones, and from `more`."""
    merged: dict[str, Any] = {}
    for source in sources:
        merged |= asdict(source)
    return msgspec.convert(merged | more, view, from_attributes=True)


class _Ready(ASGIResponse):
    """JSON with its head, as the server takes them."""

    def __init__(self, body: bytes, status_code: int, headers: Mapping[str, str]) -> None:
        self.body, self.status_code = body, status_code
        self._head = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._head += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's signature
        await send({"type": "http.response.start", "status": self.status_code, "headers": self._head})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


class Decided(Response[T]):
    """The answer to a command, always JSON and always short: put together at once. Litestar's own way, which looks for
    cookies, encoders and media types, takes a tenth of the whole request.
    """

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        return _Ready(_encode_json(self.content), self.status_code or HTTPStatus.OK, self.headers)


def decided(
    receipt: Receipt[Any], body: T, *, status_code: int = 200, headers: Mapping[str, str] | None = None
) -> Response[T]:
    """The answer to a command: what was decided, where in the log, and at which version that left the stream."""
    marks = {"Event-Position": str(receipt.position), "ETag": f'"{receipt.version}"'}
    return Decided(body, status_code=status_code, headers={**marks, **(headers or {})})


def gone(receipt: Receipt[Any]) -> Response[None]:
    """The answer to a deletion."""
    return Response(None, status_code=204, headers={"Event-Position": str(receipt.position)})


def found(body: T, position: int, *, version: int | None = None) -> Response[T]:
    """The answer to a query: as of `position`."""
    headers = {"Event-Position": str(position)}
    if version is not None:
        headers["ETag"] = f'"{version}"'
    return Response(body, headers=headers)


def listed(
    request: AnyRequest, items: Sequence[T], position: int, *, limit: int, cursor: object
) -> Response[Listing[T]]:
    """One page of a list, with the link to the next one if this one is full. `cursor` is that of the last item."""
    following = str(cursor) if len(items) == limit else None
    headers = {"Event-Position": str(position)}
    if following is not None:
        headers["Link"] = next_link(request, following)
    return Response(Listing(list(items), following), headers=headers)


def next_link(request: AnyRequest, cursor: str) -> str:
    """RFC 8288: the same request, from the cursor on."""
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    return f'<{request.url.path}?{urlencode([*query, ("after", cursor)])}>; rel="next"'
