"""OpenAPI for handlers that read their forms themselves."""

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody
from msgspec import Struct


def form_operation(form: type[Struct], media_type: str) -> type[Operation]:
    """An operation whose request body is `form`, described by its own JSON schema."""
    _, components = msgspec.json.schema_components([form])
    schema: Any = components[form.__name__]  # JSON schema as it is, which is what OpenAPI 3.1 takes
    body = RequestBody(content={media_type: OpenAPIMediaType(schema=schema)}, required=True)

    @dataclass
    class FormOperation(Operation):
        def __post_init__(self) -> None:
            self.request_body = body  # Litestar saw no `data` and says that there is none

    return FormOperation
