"""What operations of the OpenAPI document share: header parameters, headers of answers, ways to say who asks.

JSON as it is: Litestar puts dictionaries into its document unchanged.
"""

from collections.abc import Mapping
from typing import Any


def _parameter(name: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": dict(schema)}


PARAMETERS: dict[str, Any] = {
    "IdempotencyKey": _parameter(
        "Idempotency-Key",
        "The same key with the same request gets the same answer and does nothing twice, for 24 hours at least.",
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
    ),
    "IfMatch": _parameter(
        "If-Match",
        "Entity tags of the versions that may be written over, or *; 412 where it is another.",
        {"type": "string", "pattern": r'^(\*|(W/)?"[^",]*"(, ?(W/)?"[^",]*")*)$', "examples": ['"1"', "*"]},
    ),
    "MinPosition": _parameter(
        "Min-Position",
        "Answer from what reflects this position at least, as an Event-Position gave it; with `@` and the Log-Epoch.",
        {"type": "string", "pattern": "^[0-9]{1,18}(@[0-9a-f]{8})?$"},
    ),
    "Prefer": _parameter(
        "Prefer", "`wait=2`: how many seconds, 10 at most, to wait for Min-Position.", {"type": "string"}
    ),
}
HEADERS: dict[str, Any] = {
    "RequestId": {"description": "Finds this request in the log.", "schema": {"type": "string"}},
    "EventPosition": {
        "description": "The position of the command's last event; of a query, that the answer reflects.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "LogEpoch": {"description": "Of the log that the position belongs to.", "schema": {"type": "string"}},
    "ETag": {"description": 'The version in quotes, for If-Match: `"3"`.', "schema": {"type": "string"}},
    "Location": {"description": "Where it is.", "schema": {"type": "string"}},
    "RetryAfter": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 0}},
    "WWWAuthenticate": {"description": "How to say who one is.", "schema": {"type": "string"}},
    "XRequiredRoles": {"description": "Roles that may do it, by commas.", "schema": {"type": "string"}},
    "RateLimitPolicy": {"description": "Limits, by name, requests and seconds.", "schema": {"type": "string"}},
    "RateLimit": {"description": "What is left of a limit, and when it is whole again.", "schema": {"type": "string"}},
}
REFUSAL_HEADERS = {
    401: {"WWW-Authenticate": "WWWAuthenticate"},
    403: {"X-Required-Roles": "XRequiredRoles"},
    425: {"Retry-After": "RetryAfter"},
    429: {"Retry-After": "RetryAfter", "RateLimit-Policy": "RateLimitPolicy", "RateLimit": "RateLimit"},
    503: {"Retry-After": "RetryAfter"},
}
SECURITY_SCHEMES: dict[str, Any] = {
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "From POST /v1/auth/login."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}
