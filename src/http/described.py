"""What the OpenAPI document says beyond what Litestar sees of a handler.

Shapes are described by the library that reads and writes them, so that the document says what really is taken: unknown
fields forbidden, bounds exact. Headers, refusals, security and links follow from what a handler declares: the
parameters that it is given, and these options:

    produces   media types of the answer, where it is not JSON alone
    takes_json the shape of a JSON body that the handler reads itself
    keyed      an Idempotency-Key counts, although the handler is given no `caller`
    refuses    statuses that the rules of its own commands add to those which every such handler has
    access     the permission that it takes; see auth.py
    limit      how often it may be asked; see limits.py
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from litestar import Litestar, Response
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Operation, Parameter
from litestar.types import Empty, Method
from msgspec import Struct

from .described_parts import HEADERS, PARAMETERS, REFUSAL_HEADERS, SECURITY_SCHEMES
from .manners import fresh_reads
from .problems import PROBLEM_TYPE, STATUSES, Detail, Facade, Problem
from .request_schemas import EXAMPLES, refine

METHODS = ("get", "put", "post", "delete", "head", "patch")
SCHEMAS = "#/components/schemas/{name}"
JSON = "application/json"
NO_CONTENT = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.FOUND})
INTEGER_MAX = 2**63 - 1

_ATTRIBUTE = re.compile(r"(\w+(?:, \w+)*): (.+)")


def operation_id(handler: HTTPRouteHandler, _method: Method, _path: Sequence[Any]) -> str:
    """`job_submit` for JobController.submit, or for submit() of job.py: what generated clients call it, for good."""
    controller = getattr(handler.fn, "__self__", None)
    if controller is None:
        return f"{handler.fn.__module__.rpartition('.')[2]}_{handler.handler_name}"
    noun = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(controller).__name__.removesuffix("Controller")).lower()
    return f"{noun}_{handler.handler_name}"


def describe(app: Litestar, facades: Sequence[Facade], *, authenticated: bool) -> dict[str, Any]:
    """Complete the document that `app` serves, in place; as JSON, which takes too long to be made for every reader.

    Args:
        app: with all of its routes.
        facades: whose paths refuse in words of their own.
        authenticated: whether requests must say who asks; only then the document speaks of security.
    """
    document = app.openapi_schema
    served = {(route.path_format, method): one for route in app.routes for method, one in _handlers(route)}
    operations = {
        (path, method): operation
        for path, item in (document.paths or {}).items()
        for method in METHODS
        if (operation := getattr(item, method)) is not None
    }
    refusals: list[type[Struct]] = [Problem, Detail, *(one.shape for one in facades if one.shape is not None)]
    schemas = _Schemas([handler for key, handler in served.items() if key in operations], refusals)
    components = document.components
    components.parameters, components.headers = dict(PARAMETERS), dict(HEADERS)
    components.responses = {}
    if authenticated:
        components.security_schemes = dict(SECURITY_SCHEMES)
    for (path, method), operation in operations.items():
        facade = next((one for one in facades if one.serves(path)), None)
        described = _Described(served[path, method], operation, schemas, facade, authenticated)
        described.complete()
        for status in described.refusals():
            name = _refusal_name(status, facade)
            operation.responses[str(status)] = _reference(f"responses/{name}")
            components.responses[name] = _refusal(status, facade)
    names = _own_names({path for path, _ in operations})
    document.paths = {names[path]: item for path, item in (document.paths or {}).items()}
    for (path, _), operation in operations.items():
        _rename(operation, names[path])
    _link({(names[path], method): operation for (path, method), operation in operations.items()})
    components.schemas = schemas.components
    return document.to_schema()


def _handlers(route: Any) -> Iterator[tuple[str, HTTPRouteHandler]]:
    for handler in getattr(route, "route_handlers", ()):
        yield from ((method.lower(), handler) for method in handler.http_methods)


def _reference(place: str) -> Any:
    """Plain dictionaries go into Litestar's document as they are."""
    return {"$ref": f"#/components/{place}"}


class _Described:
    """One operation and its handler."""

    def __init__(
        self,
        handler: HTTPRouteHandler,
        operation: Operation,
        schemas: "_Schemas",
        facade: Facade | None,
        authenticated: bool,
    ) -> None:
        self._handler = handler
        self._operation = operation
        self._schemas = schemas
        self._facade = facade
        self._given = handler.parsed_fn_signature.parameters
        self._secured = authenticated and handler.opt.get("access") is not None
        self._keyed = "caller" in self._given or handler.opt.get("keyed", False)
        reads = handler.resolve_dependencies().get("reads")
        self._waits = "reads" in self._given and reads is not None and reads.dependency is not fresh_reads
        self._body_shape = body_of(handler)
        self._status = HTTPStatus(handler.status_code)
        seen = (operation.responses or {}).get(str(int(self._status)))
        self._produced = list(getattr(seen, "content", None) or ())

    def complete(self) -> None:
        operation = self._operation
        headers = [
            (self._keyed, "IdempotencyKey"),
            ("versions" in self._given, "IfMatch"),
            (self._waits, "MinPosition"),
            (self._waits, "Prefer"),
        ]
        for parameter in operation.parameters or []:
            _exact(getattr(parameter, "schema", None))
        operation.parameters = [
            *(operation.parameters or []),
            *(_reference(f"parameters/{name}") for wanted, name in headers if wanted),
        ] or None
        if self._secured:
            operation.security = [{"token": []}, {"key": []}]
            permission = f"Takes the permission `{self._handler.opt['access']}`."
            operation.description = "\n\n".join(filter(None, [operation.description, permission]))
        if self._body_shape is not None:
            operation.request_body = self._body()  # type: ignore[assignment]  # see _reference
        answers = {self._status: None} | {
            HTTPStatus(status): spec for status, spec in (self._handler.responses or {}).items()
        }
        operation.responses = {str(int(status)): self._answer(status, spec) for status, spec in answers.items()}

    def _body(self) -> dict[str, Any]:
        content: dict[str, Any] = {"schema": self._schemas.of(self._body_shape)}
        name = next((one.__name__ for one in _structs(self._body_shape)), "")
        if name in EXAMPLES:
            content["examples"] = {key: {"value": value} for key, value in EXAMPLES[name].items()}
        required = "data" not in self._given or self._given["data"].default is Empty
        return {"content": {JSON: content}, "required": required}

    def _answer(self, status: HTTPStatus, spec: Any) -> Any:
        answer: dict[str, Any] = {"description": status.phrase, "headers": self._headers(status)}
        if spec is not None:
            answer["content"] = {JSON: {"schema": self._schemas.of(spec.data_container)}}
        elif status not in NO_CONTENT and "HEAD" not in self._handler.http_methods:
            answer["content"] = {kind: self._content(kind) for kind in self._media_types()}
        return answer

    def _media_types(self) -> Sequence[str]:
        declared: Sequence[str] | None = self._handler.opt.get("produces")
        return declared or self._produced

    def _content(self, media_type: str) -> dict[str, Any]:
        if media_type != JSON:
            return {"schema": {"type": "string"} if media_type.startswith("text/") else {}}
        annotation = answer_of(self._handler)
        return {"schema": {} if annotation is None else self._schemas.of(annotation)}

    def _headers(self, status: HTTPStatus) -> dict[str, Any]:
        """A header that is always there is required, so that checks notice where it is not."""
        command = self._keyed and status < HTTPStatus.MULTIPLE_CHOICES
        query = "reads" in self._given and status == HTTPStatus.OK
        required = {"X-Request-ID": "RequestId"}
        if command or query:
            required |= {"Event-Position": "EventPosition", "Log-Epoch": "LogEpoch"}
        if command and status != HTTPStatus.NO_CONTENT and self._facade is None:
            required |= {"ETag": "ETag"}
        if status == HTTPStatus.FOUND:
            required |= {"Location": "Location"}
        return {name: HEADERS[component] | {"required": True} for name, component in required.items()}

    def refusals(self) -> list[int]:
        """Statuses of refusals, from what the handler takes; its own rules add `refuses`."""
        told = [one for one in self._operation.parameters or [] if isinstance(one, Parameter)]
        path = any(one.param_in == "path" for one in told)
        cursor = any(one.name in {"at", "after"} for one in told)  # it may be of the log before a restore
        body = self._operation.request_body is not None
        codes = {
            "malformed_request": True,
            "not_found": path,
            "conflict": self._keyed or self._waits or cursor,
            "precondition_failed": "versions" in self._given,
            "payload_too_large": body,
            "unsupported_media_type": body,
            "validation_failed": self._keyed or body or bool(self._operation.parameters),
            "not_yet_projected": self._waits,
            "store_unavailable": bool({"services", "reads"} & set(self._given)),
        }
        known = self._facade.statuses if self._facade is not None else {}
        found = {known.get(code, STATUSES[code]) for code, may_be in codes.items() if may_be}
        found |= {401, 403} if self._secured else set()
        found |= {429} if self._handler.opt.get("limit") else set()
        return sorted((found | set(self._handler.opt.get("refuses", ()))) - {self._status})


def _refusal_name(status: int, facade: Facade | None) -> str:
    return f"{'Problem' if facade is None else (facade.shape or Detail).__name__}{status}"


def _refusal(status: int, facade: Facade | None) -> Any:
    shape, media_type = (Problem, PROBLEM_TYPE) if facade is None else (facade.shape or Detail, JSON)
    codes = [code for code, one in STATUSES.items() if one == status]
    return {
        "description": HTTPStatus(status).phrase
        + (f": {', '.join(f'`{code}`' for code in codes)}" if facade is None else ""),
        "headers": {name: _reference(f"headers/{one}") for name, one in REFUSAL_HEADERS.get(status, {}).items()},
        "content": {media_type: {"schema": _reference(f"schemas/{shape.__name__}")}},
    }


def _exact(schema: Any) -> None:
    """Litestar keeps bounds as floats, which cannot tell 2^63 - 1 from 2^63."""
    for name in ("maximum", "minimum"):
        bound = getattr(schema, name, None)
        if isinstance(bound, float) and bound.is_integer():
            setattr(schema, name, min(int(bound), INTEGER_MAX))


def _own_names(paths: set[str]) -> dict[str, str]:
    """`/v1/jobs/{job_id}/history`: what every noun can be asked is declared once, for a `stream_id`."""
    found = {}
    for path in paths:
        prefix = path.partition("{stream_id}")[0]
        names = {other[len(prefix) :].partition("/")[0] for other in paths if other.startswith(prefix + "{")}
        own = names - {"{stream_id}"}
        found[path] = path.replace("{stream_id}", own.pop()) if len(own) == 1 else path
    return found


def _rename(operation: Operation, path: str) -> None:
    for parameter in operation.parameters or []:
        if isinstance(parameter, Parameter) and parameter.name == "stream_id" and "{stream_id}" not in path:
            parameter.name = re.findall(r"{(\w+)}", path)[0]


def _link(operations: Mapping[tuple[str, str], Operation]) -> None:
    """From whatever makes something to all that can be done with it, by its id."""
    for (path, method), made in operations.items():
        created = (made.responses or {}).get("201")
        if method != "post" or created is None:
            continue
        created["links"] = {  # type: ignore[index]  # see _reference
            str(then.operation_id): {
                "operationId": then.operation_id,
                "parameters": {f"path.{parameter[1]}": "$response.body#/id"},
            }
            for (other, _), then in operations.items()
            if (parameter := re.match(rf"{re.escape(path)}/\{{(\w+)\}}", other)) and other.count("{") == 1
        }


def body_of(handler: HTTPRouteHandler) -> Any:
    """The shape of the JSON that it takes; None where it takes none."""
    data = handler.parsed_fn_signature.parameters.get("data")
    return handler.opt.get("takes_json") if data is None else data.annotation


def answer_of(handler: HTTPRouteHandler) -> Any:
    """What is in the body of its answer, as far as its annotation says; None where it does not."""
    annotation = handler.parsed_fn_signature.return_type.annotation
    for one in get_args(annotation) if _is_union(annotation) else (annotation,):
        inner = get_args(one)[0] if get_origin(one) is Response else one
        if any(_structs(inner)) or get_origin(inner) in {dict, list}:
            return inner
    return None


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in {Union, UnionType}


def _structs(annotation: Any) -> Iterator[type[Struct]]:
    """Of an annotation, however deep."""
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, Struct):
        yield origin
    for inner in get_args(annotation):
        yield from _structs(inner)


class _Schemas:
    """JSON schemas of all that handlers take and answer."""

    def __init__(self, handlers: Sequence[HTTPRouteHandler], refusals: Sequence[type[Struct]]) -> None:
        shapes: list[Any] = list(refusals)
        for handler in handlers:
            specs = (handler.responses or {}).values()
            wanted = [body_of(handler), answer_of(handler), *(one.data_container for one in specs)]
            shapes += [one for one in wanted if one is not None and one not in shapes]
        found, self.components = msgspec.json.schema_components(shapes, ref_template=SCHEMAS)
        self._found = list(zip(shapes, found, strict=True))
        for name, schema in self.components.items():
            explain(schema)
            refine(name, schema)

    def of(self, shape: Any) -> dict[str, Any]:
        return next(schema for one, schema in self._found if one == shape)


def explain(schema: dict[str, Any]) -> None:
    """Move what a docstring says of attributes to where readers of the document look for it."""
    text, _, attributes = schema.get("description", "").partition("Attributes:\n")
    properties, said = schema.get("properties", {}), None
    for line in attributes.splitlines():
        found = _ATTRIBUTE.fullmatch(line.strip())
        if found is not None and set(found[1].split(", ")) <= set(properties):
            said = [properties[name] for name in found[1].split(", ")]
            for one in said:
                one["description"] = found[2]
        elif said and line.strip():
            for one in said:
                one["description"] += f" {line.strip()}"
    if text.strip():
        schema["description"] = text.strip()
    else:
        schema.pop("description", None)
