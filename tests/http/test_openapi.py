"""The OpenAPI document: valid, whole, and as its snapshot says.

The snapshot is what clients depend on: an operation, its id, what it asks for and how it may answer. Where it changed
and was meant to, `python -m tests.http.openapi` writes it anew.
"""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import jsonschema_rs
import pytest
from litestar import Litestar
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR
from tests.http.door import Door
from tests.http.openapi import SNAPSHOT, guarded, operations, snapshot

from sightline.http.described import operation_id
from sightline.http.request_schemas import EXAMPLES, PROPERTIES, REFINED

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = "application/json"
UNKNOWN = UUID(int=1)
OPERATION_ID = re.compile(r"[a-z]+(_[a-z]+)+")
# What they take depends on what there is: their examples are in the tests of their own.
WITHOUT_EXAMPLE = {
    "asset_complete",
    "flowviz_login",
    "inference_infer",
    "inference_version_infer",
    "layered_images_create",
    "layered_images_upload",
    "login_change_password",
    "login_login",
    "model_slot_roll_back",
    "session_attach",
    "user_change_role",
    "user_create",
    "user_set_password",
}
FORGIVING = {"LoginAsked"}  # the food lots' clients send more than is looked at
# JSON whose columns depend on the report, or that is a table of words.
WITHOUT_SHAPE = {"analytics_report", "audit_events", "layered_images_download"}


@pytest.fixture(scope="module")
def app() -> Litestar:
    return guarded()


@pytest.fixture
def document(app: Litestar) -> dict[str, Any]:
    """As it is where requests must say who asks; a copy, which may be broken."""
    return copy.deepcopy(app.openapi_schema.to_schema())


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Media types of successes and what is said of them."""
    for status, answer in operation["responses"].items():
        if status < "300":
            yield from answer.get("content", {}).items()


def complaints(document: dict[str, Any]) -> set[str]:
    """What an operation lacks, by its id."""
    tags = {tag["name"] for tag in document["tags"]}
    seen: set[str] = set()
    found = set()
    for method, path, operation in operations(document):
        name = operation.get("operationId", f"{method} {path}")
        successes = [status for status in operation["responses"] if status < "400"]
        body = operation.get("requestBody", {}).get("content", {})
        has = {
            "an id": OPERATION_ID.fullmatch(name) is not None and name not in seen,
            "a summary": bool(operation.get("summary")),
            "a tag that is described": len(operation.get("tags", ())) == 1 and set(operation["tags"]) <= tags,
            "one success": len(successes) == 1,
            "a malformed request": "400" in operation["responses"],
            "no catch-all": "default" not in operation["responses"],
            "a shape": name in WITHOUT_SHAPE
            or all(said["schema"] for kind, said in contents(operation) if kind == JSON),
            "an example": name in WITHOUT_EXAMPLE or all(said.get("examples") for said in body.values()),
            "refusals of strangers": ("401" in operation["responses"]) >= bool(operation.get("security")),
        }
        seen.add(name)
        found |= {f"{name} lacks {what}" for what, good in has.items() if not good}
    return found


async def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []
    for name, schema in document["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid(schema), name


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    places = set(re.findall(r"'\$ref': '#/([^']+)'", str(document)))
    assert len(places) > 50
    for place in places:
        found: Any = document
        for step in place.split("/"):
            found = found[step]
        assert found
    ids = {operation["operationId"] for _, _, operation in operations(document)}
    assert {link for _, _, one in operations(document) for link in links(one)} <= ids


def links(operation: dict[str, Any]) -> set[str]:
    return {
        link["operationId"] for answer in operation["responses"].values() for link in answer.get("links", {}).values()
    }


async def test_every_operation_says_what_it_should(document: dict[str, Any]) -> None:
    assert complaints(document) == set()


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda operation: operation.pop(key)


def _answering(status: str) -> Callable[[dict[str, Any]], None]:
    return lambda operation: operation["responses"].update({status: {"description": "?"}})


@pytest.mark.parametrize(
    ("breaking", "complaint"),
    [
        (_without("summary"), "session_create lacks a summary"),
        (_without("tags"), "session_create lacks a tag that is described"),
        (_without("operationId"), "POST /v1/sessions lacks an id"),
        (_answering("202"), "session_create lacks one success"),
        (_answering("default"), "session_create lacks no catch-all"),
        (lambda one: one["responses"].pop("401"), "session_create lacks refusals of strangers"),
        (lambda one: one["responses"]["201"]["content"].update({JSON: {"schema": {}}}), "session_create lacks a shape"),
        (lambda one: one["requestBody"]["content"][JSON].pop("examples"), "session_create lacks an example"),
    ],
)
async def test_an_operation_that_does_not_is_noticed(
    document: dict[str, Any], breaking: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    changed = copy.deepcopy(document)
    breaking(changed["paths"]["/v1/sessions"]["post"])
    assert complaints(changed) == {complaint}


async def test_the_operations_are_those_of_the_snapshot(document: dict[str, Any]) -> None:
    assert snapshot(document) == SNAPSHOT.read_text()
    del document["paths"]["/v1/sessions"]["post"]["responses"]["409"]
    assert snapshot(document) != SNAPSHOT.read_text()


async def test_every_example_fits_its_schema_and_is_taken(door: Door, document: dict[str, Any]) -> None:
    said = [
        (path, name, example["value"])
        for method, path, operation in operations(document)
        if method == "POST"
        for content in operation.get("requestBody", {}).get("content", {}).values()
        for name, example in content.get("examples", {}).items()
    ]
    schemas = {"components": document["components"]}
    for name, examples in EXAMPLES.items():
        validator = jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{name}"} | schemas)
        for example in examples.values():
            validator.validate(example)
    sent = set()
    for path, name, example in said:
        # The first needs an owner, since nobody is asked who he is; the others something that is there.
        if path != "/v1/api-keys" and "{" not in path:
            answer = await door.client.post(path, json=example)
            assert answer.status_code in {200, 201}, (path, name, answer.text)
            sent.add(path)
    assert {"/v1/jobs", "/v1/batches", "/v1/models", "/v1/assets", "/v1/webhooks"} <= sent


@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ({"jobs": [{}]}, False),
        ({"jobs": [{"params": {"texts": ["a"]}}, {}]}, False),
        ({"jobs": [{}], "defaults": {"params": {}}}, False),
        ({"jobs": [{"params": {"texts": ["a"]}}]}, True),
        ({"jobs": [{}], "defaults": {"params": {"texts": ["a"]}}}, True),
    ],
)
async def test_what_a_kind_requires_stands_in_every_job_of_a_batch_or_in_its_defaults(
    document: dict[str, Any], more: dict[str, Any], *, fits: bool
) -> None:
    """As the service has it: what a schema takes may not be refused for what it lacks."""
    schemas = {"components": {"schemas": document["components"]["schemas"]}}
    validator = jsonschema_rs.Draft202012Validator({"$ref": "#/components/schemas/BatchAsked"} | schemas)
    assert validator.is_valid({"kind": "embed"} | more) is fits


async def test_whatever_refines_a_schema_names_one(document: dict[str, Any]) -> None:
    assert {*EXAMPLES, *PROPERTIES, *REFINED} <= set(document["components"]["schemas"])


async def test_every_bound_of_a_parameter_is_told(app: Litestar, document: dict[str, Any]) -> None:
    """Litestar leaves out the bounds of optional parameters that are 0, and keeps others as floats."""
    told = {
        (operation["operationId"], parameter["name"]): parameter["schema"]
        for _, _, operation in operations(document)
        for parameter in operation.get("parameters", ())
        if "name" in parameter
    }
    checked = 0
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if not handler.resolve_include_in_schema():
                continue
            for name, field in handler.parsed_fn_signature.parameters.items():
                kwarg: Any = field.kwarg_definition
                for bound, word in (("ge", "minimum"), ("le", "maximum"), ("max_length", "maxLength")):
                    wanted = getattr(kwarg, bound, None)
                    if wanted is None or not hasattr(kwarg, "query"):
                        continue
                    schema = told[handler.operation_id or operation_id(handler, "GET", ()), kwarg.name or name]
                    assert schema.get(word) == wanted, (route.path_format, name, word)
                    assert isinstance(schema[word], int)
                    checked += 1
    assert checked > 30


async def test_bodies_forbid_what_they_do_not_know(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    checked = 0
    for _, _, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for name in re.findall(r"#/components/schemas/(\w+)", str(content["schema"])):
                assert schemas[name].get("additionalProperties") is False or name in FORGIVING, name
                checked += 1
    assert checked > 20


async def test_nobody_is_asked_who_he_is_where_the_document_says_nothing_of_it(door: Door) -> None:
    document = (await door.client.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    assert not any("security" in operation for _, _, operation in operations(document))


async def test_options_names_every_method_of_a_path(door: Door, document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        concrete = re.sub(r"{[^}]*}", str(UNKNOWN), path.replace("{position}", "1"))
        allowed = (await door.client.options(concrete)).headers["Allow"]
        methods = {method.upper() for method in item if method in {"get", "put", "post", "delete", "head", "patch"}}
        assert set(allowed.split(", ")) == methods | {"OPTIONS"}, path
