"""The same door as for the tests of `http`."""

from tests.http.conftest import door, door_database

__all__ = ["door", "door_database"]
