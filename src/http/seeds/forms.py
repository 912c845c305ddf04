"""OpenAPI for handlers that read their forms themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi.spec import Operation
from msgspec import Struct

from ..described import explain


def form_operation(
    form: type[Struct],
    media_type: str,
    *,
    refined: Mapping[str, dict[str, Any]] | None = None,
    files: Mapping[str, str] | None = None,
) -> type[Operation]:
    """An operation whose request body is `form`, described by its own JSON schema.

    Args:
        form: a struct of the fields.
        media_type: of the form.
        refined: what that schema says of a field beyond its type.
        files: the media types of fields that are files.
    """
    _, components = msgspec.json.schema_components([form])
    schema: Any = components[form.__name__]  # JSON schema as it is, which is what OpenAPI 3.1 takes
    explain(schema)
    for name, field in schema["properties"].items():
        field.update(_of_text(field) | (refined or {}).get(name, {}))
    content: dict[str, Any] = {"schema": schema}
    if files:
        content["encoding"] = {name: {"contentType": types} for name, types in files.items()}
    body: Any = {"content": {media_type: content}, "required": True}

    @dataclass
    class FormOperation(Operation):
        def __post_init__(self) -> None:
            self.request_body = body  # Litestar saw no `data` and says that there is none

    return FormOperation


def _of_text(field: dict[str, Any]) -> dict[str, Any]:
    """A form has no null: a field is there or not."""
    choices = [one for one in field.pop("anyOf", []) if one != {"type": "null"}]
    if field.get("default", "") is None:
        del field["default"]
    return dict(*choices)
