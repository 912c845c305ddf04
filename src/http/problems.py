"""Every no that the door gives: one table from code to status, and RFC 9457 problem details around it.

Paths that a seed names keep that seed's own statuses and its body, `{"detail": …}`; see Facade.
"""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import psycopg
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException, ValidationException
from litestar.types import ExceptionHandlersMap
from msgspec import Struct

from ..adapters.child import ChildDied
from ..adapters.event_store.codec import NotStorable
from ..adapters.objects.port import ObjectStoreError
from ..adapters.objects.signing import SignatureRefused
from ..adapters.redaction import Redactor
from ..adapters.sealing_keys import VaultLocked
from ..domain.access import NotAllowed
from ..domain.kernel import Rejection
from ..domain.unique_keys import JobExists

PROBLEM_TYPE = "application/problem+json"
DETAIL_CHARS_MAX = 1_000
ERRORS_MAX = 100  # fields that are told to be wrong, of however many are
RETRY_AFTER_S = 1

_REDACTOR = Redactor()

log = structlog.get_logger(__name__)

STATUSES: Mapping[str, int] = {
    # requests
    "malformed_request": 400,
    "malformed_json": 400,
    "not_storable": 400,
    "client_disconnected": 400,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "request_timeout": 408,
    "idempotency_key_in_use": 409,
    "precondition_failed": 412,
    "payload_too_large": 413,
    "url_too_long": 414,
    "headers_too_large": 431,
    "overloaded": 503,
    "inference_died": 503,
    "deadline_exceeded": 503,
    "timed_out": 503,
    "stopping": 503,
    "report_too_large": 413,
    "unsupported_media_type": 415,
    "validation_failed": 422,
    "idempotency_key_reused": 422,
    "not_yet_projected": 425,
    "too_many_waiters": 503,
    "too_many_reports": 503,
    "too_many_exports": 503,
    "too_many_uploads": 503,
    "too_many_streams": 503,
    "too_many_subscriptions": 409,
    "upgrade_required": 426,
    "not_signed_yet": 503,
    "internal_error": 500,
    "log_damaged": 500,
    # decisions
    "rejected": 422,
    "rule_violated": 422,
    "url_refused": 422,
    "unknown_kind": 422,
    "empty_file": 422,
    "forbidden": 403,
    "conflict": 409,
    "epoch_changed": 409,
    "projection_busy": 409,
    "projection_in_use": 409,
    "projection_locked": 409,
    "event_not_foldable": 409,
    "stream_still_poisoned": 409,
    "too_many_tasks": 503,
    "invalid_state": 409,
    "asset_not_clean": 409,
    "asset_not_uploaded": 409,
    "lease_lost": 409,
    "model_not_synced": 409,
    "shadow_not_passed": 409,
    "no_active_model": 409,
    "model_unusable": 409,
    "model_not_ready": 503,
    "model_failed": 422,
    "tensor_invalid": 422,
    "answer_too_large": 422,
    "session_expired": 410,
    "model_sync_failed": 502,
    "queue_full": 503,
    "queue_paused": 409,
    "queue_busy": 409,
    "job_exists": 409,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "not_authenticated": 401,
    "bad_credentials": 401,
    "email_taken": 409,
    "last_administrator": 409,
    "hashing_busy": 503,
    "limits_unavailable": 503,
    # verdicts on files
    "content_type_mismatch": 422,
    "size_mismatch": 422,
    "image_truncated": 422,
    "image_too_many_pixels": 422,
    "image_too_many_frames": 422,
    "image_expands_too_much": 422,
    "image_undecodable": 422,
    "malware_signature": 422,
    "scan_timed_out": 422,
    # parts
    "signature_invalid": 403,
    "signature_expired": 403,
    "invalid_key": 404,
    "object_missing": 404,
    "object_exists": 412,
    "object_too_large": 413,
    "object_mismatch": 422,
    "object_damaged": 500,
    "object_store_error": 503,
    "object_store_unavailable": 503,
    "part_unavailable": 503,
    "store_unavailable": 503,
}

_CODES_OF_STATUSES = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "payload_too_large",
    415: "unsupported_media_type",
}
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
_ENUM = re.compile(r"Invalid enum value .*(?= - at `)|Invalid enum value .*", re.DOTALL)
_FIELD = re.compile(r"(?P<detail>.*) - at `\$(?P<path>.*)`")


class FieldError(Struct, frozen=True, omit_defaults=True):
    """Attributes:
    pointer: where in the body, as a JSON pointer (RFC 6901); empty for the whole of it.
    parameter: of the path, the query or the headers, if it is not the body.
    """

    detail: str
    pointer: str | None = None
    parameter: str | None = None


_NO_BODY = FieldError("'data'")


class Problem(Struct, frozen=True, omit_defaults=True):
    """A refusal (RFC 9457). `code` is stable: a program may switch on it. `detail` begins with it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    errors: Sequence[FieldError] = ()


class Refusal(Struct, frozen=True):
    """What there is to say about an exception, before it takes the form of a path."""

    code: str
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = {}


class Facade(Struct, frozen=True):
    """A seed's own way to say no.

    Attributes:
        prefixes: of the paths that it serves.
        statuses: by code, where they differ from the table above.
        lists: of these codes `detail` is a list, one item per field, as FastAPI writes it.
        shape: of its refusals, a struct with one field, a text; None: Detail.
    """

    prefixes: tuple[str, ...]
    statuses: Mapping[str, int]
    lists: frozenset[str] = frozenset()
    shape: type[Struct] | None = None

    def serves(self, path: str) -> bool:
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in self.prefixes)


class DetailItem(Struct, frozen=True):
    """Attributes:
    loc: where: `body`, then the names of the fields on the way; or `query` and the parameter's name.
    """

    loc: list[str]
    msg: str
    type: str


class Detail(Struct, frozen=True):
    """A refusal as the seeds' clients expect it."""

    detail: str | list[DetailItem]


class Fault(Struct, frozen=True):
    """A refusal as the Open Inference Protocol has it."""

    error: str


class Malformed(Rejection):
    """Not a request that could be understood: a header, a form, a character that cannot be."""

    code = "malformed_request"


class MalformedJson(Rejection):
    code = "malformed_json"


class WrongMediaType(Rejection):
    code = "unsupported_media_type"


class TooLarge(Rejection):
    code = "payload_too_large"


class FieldsRefused(Rejection):
    """Well-formed, but a field is missing, unknown, of another type or beyond its bounds."""

    code = "validation_failed"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{_place(error)}{error.detail}" for error in errors))
        self.errors = errors

    @classmethod
    def of(cls, message: str) -> "FieldsRefused":
        """From the text of a msgspec.ValidationError, which names the place at its end."""
        message = without_value(message)
        found = _FIELD.fullmatch(message)
        if found is None:
            return cls([FieldError(message, pointer="")])
        known, _, _ = found["path"].partition("[...]")  # beyond it are a stranger's own names
        path = re.sub(r"\[(\d+)\]", r".\1", known)
        return cls([FieldError(found["detail"], pointer=path.replace(".", "/"))])


def without_value(message: str) -> str:
    """A validator's words without the value that was refused: it may be a secret that went to the wrong field."""
    return _ENUM.sub("Not one of the values that it may have", message)


class Verdict(Rejection):
    """A file was judged and refused; the code is the verdict's."""

    def __init__(self, code: str, detail: str, **extra: Any) -> None:
        super().__init__(detail, **extra)
        self.code = code


def refusal_of(error: Exception) -> Refusal:
    """The code, the words and the headers for an exception; `internal_error` for one that nobody expected."""
    match error:
        case FieldsRefused():
            return Refusal(error.code, error.detail, error.errors)
        case Rejection():
            return Refusal(error.code, error.detail, headers=_rejection_headers(error))
        case NotStorable() | ObjectStoreError() | SignatureRefused():
            detail = "" if isinstance(error, ObjectStoreError | SignatureRefused) else str(error)
            return Refusal(error.code, detail, headers=_retry_after(error.code))
        case ValidationException():
            return _fields(error)
        case InternalServerException(detail="client disconnected prematurely"):
            return Refusal("client_disconnected", "the request ended before its body did")
        case HTTPException(status_code=status) if status in _CODES_OF_STATUSES:
            return Refusal(_CODES_OF_STATUSES[status], error.detail, headers=error.headers or {})
        case RecursionError():
            return Refusal("malformed_json", "nested too deeply")
        case psycopg.OperationalError():
            return Refusal("store_unavailable", "the database does not answer", headers=_retry_after("", RETRY_AFTER_S))
        case psycopg.DataError():
            return Refusal("malformed_request", "a value that cannot be looked up")
        case (
            ChildDied() | VaultLocked() | OSError()
        ):  # no child can be started, no space is left, nobody answers in time
            return Refusal(
                "part_unavailable", "a part that this needs is not there now", headers=_retry_after("", RETRY_AFTER_S)
            )
    return Refusal("internal_error", "something went wrong here; the request id finds it in the log")


def _fields(error: ValidationException) -> Refusal:
    """Litestar's own validation: parameters, and bodies that are missing."""
    extra = error.extra if isinstance(error.extra, list) else []
    errors = [
        FieldError(
            without_value(one.get("message", "")), parameter=one.get("key") if one.get("source") != "body" else None
        )
        for one in extra
        if isinstance(one, dict)
    ]
    if errors == [_NO_BODY]:  # Litestar's words for it are a KeyError's
        errors = [FieldError("a body is missing", pointer="")]
    refused = FieldsRefused(errors or [FieldError("not what this path takes")])
    return Refusal(refused.code, refused.detail, refused.errors)


def _place(error: FieldError) -> str:
    named = error.parameter or (error.pointer or "").removeprefix("/")
    return f"{named}: " if named else ""


def _rejection_headers(error: Rejection) -> dict[str, str]:
    headers = _retry_after(error.code, error.extra.get("retry_after_s"))
    if isinstance(error, NotAllowed):
        headers["X-Required-Roles"] = ", ".join(error.roles)
    if isinstance(error, JobExists):
        headers["Location"] = f"/v1/jobs/{error.extra['job_id']}"
    if STATUSES.get(error.code) == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="sightline"'
    return headers


def _retry_after(code: str, seconds: object = None) -> dict[str, str]:
    if seconds is None and STATUSES.get(code) in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_EARLY}:
        seconds = RETRY_AFTER_S
    return {} if seconds is None else {"Retry-After": str(seconds)}


def handlers(facades: Sequence[Facade]) -> ExceptionHandlersMap:
    """What Litestar calls for every exception, its own included."""

    def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        refusal = refusal_of(error)
        path = request.scope["path"]
        _tell(request, refusal, error)
        facade = next((one for one in facades if one.serves(path)), None)
        return _problem(request, refusal) if facade is None else _detail(facade, refusal)

    return {Exception: answer, HTTPException: answer}


def _problem(request: Request[Any, Any, Any], refusal: Refusal) -> Response[Any]:
    problem = problem_of(refusal, request.scope["state"].get("request_id", ""))
    return Response(problem, status_code=problem.status, media_type=PROBLEM_TYPE, headers=dict(refusal.headers))


def problem_of(refusal: Refusal, request_id: str) -> Problem:
    """The refusal as /v1 and the server itself say it."""
    status = STATUSES[refusal.code]
    return Problem(
        type=f"urn:sightline:problem:{refusal.code}",
        title=refusal.code.replace("_", " ").capitalize(),
        status=status,
        detail=_said(f"{refusal.code}: {refusal.detail}" if refusal.detail else refusal.code),
        code=refusal.code,
        instance=f"urn:sightline:request:{request_id}",
        errors=[_shown(error) for error in refusal.errors[:ERRORS_MAX]],
    )


def answer_outside(
    code: str, detail: str, *, path: str = "", request_id: str = "", facades: Sequence[Facade] = ()
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of a refusal that Litestar never sees."""
    refusal = Refusal(code, detail, headers=_retry_after(code))
    facade = next((one for one in facades if one.serves(path)), None)
    if facade is None:
        problem = problem_of(refusal, request_id)
        status, kind, body = problem.status, PROBLEM_TYPE, msgspec.json.encode(problem)
    else:
        status, kind = facade.statuses.get(code, STATUSES[code]), "application/json"
        body = msgspec.json.encode((facade.shape or Detail)(_said(detail)))
    headers = {"content-type": kind, "content-length": str(len(body)), **refusal.headers}
    return status, [(name.lower().encode(), value.encode()) for name, value in headers.items()], body


def _detail(facade: Facade, refusal: Refusal) -> Response[Any]:
    status = facade.statuses.get(refusal.code, STATUSES[refusal.code])
    said: str | list[DetailItem] = _said(refusal.detail or refusal.code.replace("_", " "))
    if refusal.code in facade.lists:
        said = _items(refusal)
    return Response(
        (facade.shape or Detail)(said), status_code=status, media_type="application/json", headers=dict(refusal.headers)
    )


def _items(refusal: Refusal) -> list[DetailItem]:
    items = []
    for error in refusal.errors or [FieldError(refusal.detail or refusal.code.replace("_", " "), pointer="")]:
        missing = _MISSING.fullmatch(error.detail)
        names = [missing["field"]] if missing is not None else []
        if error.parameter is None:
            loc = ["body", *(error.pointer or "").split("/")[1:], *names]
        else:
            loc = ["query", error.parameter]
        items.append(DetailItem(loc, _said(error.detail), "missing" if missing is not None else "value_error"))
    return items


def _said(text: str) -> str:
    """Lone surrogates would not encode; a client's own text, quoted back, has a length, and no secret in it."""
    return _REDACTOR.clipped(text, DETAIL_CHARS_MAX).encode(errors="replace").decode()


def _shown(error: FieldError) -> FieldError:
    """Names of fields and parameters are told back, values are not; a stranger's name has a length, too."""
    pointer, parameter = error.pointer, error.parameter
    return FieldError(
        _said(error.detail),
        pointer=_said(pointer) if pointer else pointer,
        parameter=_said(parameter) if parameter else parameter,
    )


def _tell(request: Request[Any, Any, Any], refusal: Refusal, error: Exception) -> None:
    """The code goes into the canonical line; the stack of what nobody expected goes into the log, once."""
    request.scope["state"]["code"] = refusal.code
    if STATUSES[refusal.code] == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request_failed", request_id=request.scope["state"].get("request_id"), exc_info=error)
    elif (
        isinstance(error, psycopg.Error | ObjectStoreError | ChildDied | VaultLocked | OSError)
        or refusal.code == "store_unavailable"
    ):
        log.warning("part_failed", code=refusal.code, error=repr(error))
