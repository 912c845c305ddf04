"""What OpenAPI says of refusals: any status that a route does not name is a problem, or a seed's `detail`."""

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPI, OpenAPIMediaType, OpenAPIResponse, Reference, Schema
from msgspec import Struct

from .problems import PROBLEM_TYPE, Detail, Facade, Problem

METHODS = ("get", "put", "post", "delete", "head", "patch")


def describe_refusals(document: OpenAPI, facades: Sequence[Facade]) -> None:
    """Put the shape of refusals into `document`, in place of Litestar's own, which are never sent."""
    schemas: dict[str, Any] = document.components.schemas
    schemas.update(_schemas(Problem, Detail))
    problem, detail = _response(Problem, PROBLEM_TYPE), _response(Detail, "application/json")
    for path, item in (document.paths or {}).items():
        refused = detail if any(facade.serves(path) for facade in facades) else problem
        for operation in (getattr(item, method) for method in METHODS):
            if operation is not None and operation.responses is not None:
                operation.responses.pop("400", None)
                operation.responses["default"] = refused


def _schemas(*shapes: type[Struct]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    return dict(components)


def _response(shape: type[Struct], media_type: str) -> OpenAPIResponse:
    content: Schema | Reference = Reference(ref=f"#/components/schemas/{shape.__name__}")
    return OpenAPIResponse(description="Refused", content={media_type: OpenAPIMediaType(schema=content)})
