"""What must be set before strangers may knock."""

from typing import Any

import pytest

from sightline.adapters.settings import Settings, SettingsError, require_door, secrets_of

LONG = "s" * 32


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"host": "localhost"},
        {"auth_enabled": True, "secret_key": LONG, "host": "0.0.0.0"},
        {"auth_enabled": True, "secret_key": f"{LONG}, {LONG}", "host": "::"},
        {"auth_enabled": True, "secret_key": "é" * 16},
        {"secret_key": LONG},
    ],
    ids=str,
)
def test_a_door_that_may_open(given: dict[str, Any]) -> None:
    require_door(Settings(**given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"host": "0.0.0.0"}, "authentication is off"),
        ({"host": "192.0.2.1", "secret_key": LONG}, "authentication is off"),
        ({"auth_enabled": True}, "SECRET_KEY"),
        ({"auth_enabled": True, "secret_key": "s" * 31}, "number 1"),
        ({"auth_enabled": True, "secret_key": f"{LONG},short"}, "number 2"),
        ({"auth_enabled": True, "secret_key": f"{LONG},"}, "number 2"),
        ({"secret_key": "short"}, "number 1"),
        ({"auth_enabled": True, "secret_key": LONG, "jwt_algorithm": "none"}, "HS256"),
        ({"auth_enabled": True, "secret_key": LONG, "jwt_algorithm": "RS256"}, "HS256"),
        ({"auth_enabled": True, "secret_key": LONG, "jwt_expire_minutes": 0}, "JWT_EXPIRE_MINUTES"),
        ({"auth_enabled": True, "secret_key": LONG, "jwt_expire_minutes": 1441}, "JWT_EXPIRE_MINUTES"),
    ],
    ids=str,
)
def test_a_door_that_stays_shut(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refusal:
        require_door(Settings(**given))
    assert LONG not in str(refusal.value)


def test_secrets_are_listed_the_newest_first() -> None:
    assert secrets_of(Settings(secret_key="new, old")) == ["new", "old"]
    assert secrets_of(Settings()) == []
