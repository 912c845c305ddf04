"""One table from code to status, with every code in it."""

import importlib
import pkgutil
from typing import Any

import psycopg
import pytest
from tests.http.door import Door, client_of

import sightline
from sightline.adapters.objects.port import ObjectStoreError
from sightline.domain.kernel import Rejection
from sightline.http.problems import STATUSES, refusal_of
from sightline.http.services import Services


def _subclasses(kind: type[Any]) -> set[Any]:
    found: set[Any] = {kind}
    return found.union(*map(_subclasses, kind.__subclasses__()))


def test_every_rejection_has_a_status() -> None:
    for module in pkgutil.walk_packages(sightline.__path__, "sightline."):
        if not any(part in module.name for part in ("__main__", "onnx", "runner", "schema")):
            importlib.import_module(module.name)
    codes = {one.code for one in _subclasses(Rejection) | _subclasses(ObjectStoreError)}
    assert codes - STATUSES.keys() == set()
    assert len(codes) > 20  # the control: they were found


def test_verdicts_on_pictures_have_a_status() -> None:
    from typing import get_args

    from sightline.adapters.images import Code

    assert {code for code in get_args(Code) if code} <= STATUSES.keys()


def test_a_database_that_is_gone_is_503() -> None:
    refusal = refusal_of(psycopg.OperationalError("connection refused to secret-host"))
    assert (STATUSES[refusal.code], refusal.headers) == (503, {"Retry-After": "1"})
    assert "secret-host" not in refusal.detail


@pytest.mark.asyncio(loop_scope="module")
async def test_what_nobody_expected_is_500_without_its_insides(
    door: Door, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *_: object, **__: object) -> None:
        raise ZeroDivisionError("the insides")

    monkeypatch.setattr(type(door.services.reads), "fetch", fail)
    answer = await door.client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "insides" not in answer.text
    assert capsys.readouterr().out.count("ZeroDivisionError: the insides") == 1  # told once, with its stack


@pytest.mark.asyncio(loop_scope="module")
async def test_cors_is_for_the_origins_of_the_settings(door: Door) -> None:
    from msgspec.structs import replace

    settings = replace(door.services.settings, cors_origins=["http://localhost:3000"])
    services: Services = replace(door.services, settings=settings)
    async with client_of(services) as client:
        allowed = await client.get("/livez", headers={"Origin": "http://localhost:3000"})
        assert allowed.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert "Access-Control-Allow-Origin" not in (await client.get("/livez", headers={"Origin": "http://x"})).headers
    assert (
        "Access-Control-Allow-Origin" not in (await door.client.get("/livez", headers={"Origin": "http://x"})).headers
    )
