"""What of the OpenAPI document is kept as a snapshot; run as a module, it writes that anew."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from litestar import Litestar

from sightline.adapters.settings import read
from sightline.http.app import create_app

SNAPSHOT = Path(__file__).with_name("openapi.txt")
METHODS = ("get", "put", "post", "delete", "head", "patch")


def guarded() -> Litestar:
    """The application where requests must say who asks. It opens nothing, so it needs no services."""
    settings = read({}, auth_enabled=True)
    return create_app(cast("Any", SimpleNamespace(settings=settings, keys_under_way=set())))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and what is said of it, by path."""
    for path, item in sorted(document["paths"].items()):
        for method in METHODS:
            if method in item:
                yield method.upper(), path, item[method]


def snapshot(document: dict[str, Any]) -> str:
    """A line for each operation: how it is called, what it asks for, and how it may answer."""
    lines = []
    for method, path, operation in operations(document):
        parameters = " ".join(_parameter(document, one) for one in operation.get("parameters", ()))
        body = " ".join(operation.get("requestBody", {}).get("content", {}))
        produces = " ".join(
            kind
            for status, answer in operation["responses"].items()
            if status < "400"
            for kind in answer.get("content", {})
        )
        lines += [
            f"{method} {path}  {operation['operationId']}",
            f"    {' '.join(sorted(operation['responses']))}",
            f"    asks: {parameters or '-'}; body: {body or '-'}; answers: {produces or '-'}",
        ]
    return "\n".join(lines) + "\n"


def _parameter(document: dict[str, Any], parameter: dict[str, Any]) -> str:
    if "$ref" in parameter:
        parameter = document["components"]["parameters"][parameter["$ref"].rpartition("/")[2]]
    return f"{parameter['name']}{'' if parameter.get('required') else '?'}"


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot(guarded().openapi_schema.to_schema()))
