"""Where a check is wrong about us: which answer it may not hold against us, on which operation, and why.

A check itself is never switched off: each excuse is for the refusals of one code, so that another refusal of the same
status is still found.
"""

from typing import Any

import schemathesis
from msgspec import Struct
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.openapi.checks import RejectedPositiveData

EVERYWHERE = "*"


class Excuse(Struct, frozen=True):
    """Attributes:
    operations: by their ids.
    codes: of problems; the facades' refusals have no code, there it is the status.
    """

    check: type[Failure]
    operations: tuple[str, ...]
    codes: frozenset[str]
    reason: str


def _excuse(check: type[Failure], operations: str, codes: str, reason: str) -> Excuse:
    return Excuse(check, tuple(operations.split()), frozenset(codes.split()), reason)


EXCUSES = (
    _excuse(
        RejectedPositiveData,
        EVERYWHERE,
        "session_expired precondition_failed not_yet_projected",
        "What is stored decides, as with 404 and 409, which the check itself takes: a session is over, a version is"
        " another, a position is not reached.",
    ),
    _excuse(
        AcceptedNegativeData,
        EVERYWHERE,
        "session_expired precondition_failed not_yet_projected payload_too_large",
        "It was refused, for a reason that is looked at earlier; the check's own list lacks these statuses.",
    ),
    _excuse(RejectedPositiveData, "proof_consistency", "validation_failed", "A rule over two fields: from <= to."),
    _excuse(
        RejectedPositiveData,
        "audit_export projection_verify",
        "rule_violated",
        "Positions are at most where the log ends, which changes.",
    ),
    _excuse(
        RejectedPositiveData,
        "asset_complete",
        "object_mismatch",
        "Size and digest are those of the bytes that came.",
    ),
    _excuse(
        RejectedPositiveData,
        "asset_announce model_register user_create user_set_password login_change_password",
        "rule_violated",
        "Names and passwords are of characters that can be seen, names without blanks around them; what Unicode counts"
        " among those no pattern can say.",
    ),
    _excuse(
        RejectedPositiveData,
        "job_submit queue_pause",
        "rule_violated",
        "A job may wait for 90 days from now; keys and reasons are of characters that can be seen.",
    ),
    _excuse(
        RejectedPositiveData,
        "webhook_register webhook_change job_submit",
        "url_refused",
        "Where a URL may lead is a rule over its spelling, its port and its address, which no pattern can say.",
    ),
    _excuse(
        RejectedPositiveData,
        "webhook_register webhook_change",
        "rule_violated",
        "Types and kinds are named once each, kinds in characters that can be seen.",
    ),
    _excuse(
        RejectedPositiveData,
        "shadow_start_shadow",
        "rule_violated",
        "Its times are of years in which there were computers.",
    ),
    _excuse(
        RejectedPositiveData,
        "api_key_issue",
        "rule_violated",
        "A key expires within a year from now, and its scopes are permissions that its role has.",
    ),
    _excuse(
        RejectedPositiveData,
        "model_register model_sync",
        "model_sync_failed",
        "The bytes are fetched, and nobody has any of that name: the first system's own answer to that is 502.",
    ),
    _excuse(ServerError, "model_register model_sync", "model_sync_failed", "The same."),
    _excuse(
        ServerError,
        "projection_rebuild projection_verify",
        "too_many_tasks",
        "Four go on at once in one process, and the run itself has begun them.",
    ),
    _excuse(
        AcceptedNegativeData,
        "layered_images_upload",
        "200",
        "The pictures that are made for the run count as violations of the schema wherever something else is one.",
    ),
)


def excused(failure: Failure, operation: str, code: str) -> bool:
    return any(
        isinstance(failure, one.check) and code in one.codes and {operation, EVERYWHERE} & set(one.operations)
        for one in EXCUSES
    )


@schemathesis.hook
def filter_failure(_context: HookContext, failure: Failure, case: "Case[Any]", response: Response) -> bool:
    """Whether a failure counts.

    A body that may be left out may be null, too: the document says so, and the check overlooks it.
    """
    described = case.operation.definition.raw
    optional = not described.get("requestBody", {}).get("required", True)
    if optional and isinstance(failure, AcceptedNegativeData) and response.request.body in (None, b"", b"null"):
        return False
    return not excused(failure, str(described.get("operationId")), code_of(response))


def code_of(response: Response) -> str:
    """The code of a problem, else the status."""
    try:
        body = response.json()
    except ValueError:
        body = None
    code = body.get("code") if isinstance(body, dict) else None
    return str(response.status_code) if code is None else str(code)
