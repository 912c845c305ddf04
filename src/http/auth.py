"""Who asks. Today there is no authentication: everybody who reaches the door is `local`, with every right."""

from enum import StrEnum
from typing import Any

from litestar.connection import ASGIConnection
from msgspec import Struct


class Role(StrEnum):
    """What a principal may do; the table of routes and roles comes with authentication."""

    ADMIN = "ADMIN"
    MANAGER = "MANAGER"
    AUDITOR = "AUDITOR"
    OPERATOR = "OPERATOR"
    VIEWER = "VIEWER"


class Principal(Struct, frozen=True):
    """Attributes:
    actor: the name that events carry.
    """

    actor: str
    role: Role


LOCAL = Principal("local", Role.ADMIN)


def authenticate(connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:  # noqa: ARG001  # it will read the headers
    """The principal of a request; the one place that decides it."""
    return LOCAL
