"""`compose.yaml`, without an engine: what it must say, what it must not, and its SQL on a server of its own."""

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml  # type: ignore[import-untyped]  # ships no types

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import DATABASE, ROLE, PostgresServer

ROOT = Path(__file__).parents[1]
COMPOSE = (ROOT / "compose.yaml").read_text()
PARTS: dict[str, Any] = yaml.safe_load(COMPOSE)
HOW_TO = (ROOT / "docs" / "how-to" / "use-external-parts.md").read_text()
PINNED = re.compile(r"[a-z0-9-]+/[a-z0-9-]+:(?!latest)[\w.-]*\d[\w.-]*")
REQUIRED = re.compile(r"\$\{SIGHTLINE_[A-Z0-9_]+:\?[^}]+\}")
SECRET = re.compile(r"PASSWORD|SECRET|KEY")
CONNECT = f"\\connect {DATABASE}\n"


def faults(service: dict[str, Any]) -> list[str]:
    """What is wrong with one service."""
    found = []
    if not PINNED.fullmatch(service.get("image", "")):
        found.append("the image is not pinned")
    found += [
        f"{port} is open to the network" for port in service.get("ports", ()) if not port.startswith("127.0.0.1:")
    ]
    if not service.get("healthcheck", {}).get("test"):
        found.append("nobody asks whether it is well")
    for name, value in service.get("environment", {}).items():
        if SECRET.search(name) and not REQUIRED.fullmatch(value):
            found.append(f"{name} has a default")
    return found


@pytest.mark.parametrize("name", PARTS["services"])
def test_each_part_is_pinned_private_and_watched(name: str) -> None:
    assert faults(PARTS["services"][name]) == []


def test_a_careless_part_is_noticed() -> None:
    careless = {
        "image": "postgres:latest",
        "ports": ["5432:5432"],
        "environment": {"POSTGRES_PASSWORD": "${PASSWORD:-secret}"},
    }
    assert len(faults(careless)) == 4


def test_every_volume_config_and_mounted_file_is_there() -> None:
    services = PARTS["services"].values()
    mounted = {volume.partition(":")[0] for service in services for volume in service.get("volumes", ())}
    files = {source for source in mounted if source.startswith("./")}
    assert mounted - files == set(PARTS["volumes"])
    assert [source for source in files if not (ROOT / source).is_file()] == []
    assert {one["source"] for service in services for one in service.get("configs", ())} == set(PARTS["configs"])


def test_the_guide_says_the_same_sql_and_names_every_secret() -> None:
    [said] = [block for block in re.findall(r"```sql\n(.*?)```", HOW_TO, re.DOTALL) if CONNECT in block]
    assert said.replace("'secret'", ":'password'") in PARTS["configs"]["make-database"]["content"]
    assert [name for name in re.findall(r"\$\{(\w+):\?", COMPOSE) if name not in HOW_TO] == []


def test_the_sql_makes_a_database_that_migrates(tmp_path: Path) -> None:
    [said] = [block for block in re.findall(r"```sql\n(.*?)```", HOW_TO, re.DOTALL) if CONNECT in block]
    outside, inside = said.split(CONNECT)
    with PostgresServer(tmp_path) as server:
        with psycopg.connect(server.superuser_dsn, autocommit=True) as superuser:
            # Our own template1 brings the extension and is hardened; a server of somebody else's is neither.
            superuser.execute("ALTER DATABASE template1 IS_TEMPLATE false")
            superuser.execute("DROP DATABASE template1")
            superuser.execute("CREATE DATABASE template1 TEMPLATE template0 IS_TEMPLATE true")
            superuser.execute(f"DROP DATABASE {DATABASE}".encode())
            superuser.execute(f"DROP ROLE {ROLE}".encode())
            for statement in filter(str.strip, outside.split(";")):
                superuser.execute(statement.encode())
        into = server.superuser_dsn.replace("/postgres?", f"/{DATABASE}?")
        with psycopg.connect(into, autocommit=True) as superuser:
            superuser.execute(inside.encode())
        postgres.migrate(server.dsn)
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
