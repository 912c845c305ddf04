"""API keys: never more than whoever issues, and whoever owns, may do; and nothing any more once taken back."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from tests.spec import given

from sightline.domain import api_keys
from sightline.domain.access import GRANTS, PERMISSIONS, NotAllowed, NotAuthenticated, Rights, Role, may_grant
from sightline.domain.api_keys import AGGREGATE, ApiKey, ApiKeyIssued, ApiKeyRevoked
from sightline.domain.kernel import Invalid, InvalidState, NotFound
from sightline.domain.users import User

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
OWNER = UUID(int=7)
TOMORROW = NOON + timedelta(days=1)
ISSUED = ApiKeyIssued(
    at=NOON,
    name="line 3",
    owner=OWNER,
    role=Role.OPERATOR,
    scopes=["jobs:read"],
    expires_at=TOMORROW,
    prefix="0" * 16,
    hash="a" * 64,
    by="user:x",
)
REVOKED = ApiKeyRevoked(at=NOON, by="ada")


def asked(**changed: Any) -> dict[str, Any]:
    return {
        "name": "line 3",
        "owner_id": OWNER,
        "owner_state": User("active", role=Role.OPERATOR),
        "issuer": Rights(Role.ADMIN),
        "role": Role.OPERATOR,
        "scopes": frozenset({"jobs:read"}),
        "expires_at": TOMORROW,
        "prefix": "0" * 16,
        "secret_sha256": "a" * 64,
        "by": "user:x",
        "now": NOON,
    } | changed


def test_a_key_is_issued_once_and_revoked_once() -> None:
    state = given(AGGREGATE).when(api_keys.issue, **asked()).then(ISSUED)
    assert AGGREGATE.owner is not None
    assert AGGREGATE.owner(state) == f"user:{OWNER}"
    given(AGGREGATE, ISSUED).when(api_keys.revoke, by="ada", now=NOON).then(REVOKED)
    given(AGGREGATE, ISSUED, REVOKED).when(api_keys.revoke, by="ada", now=NOON).then()
    given(AGGREGATE).when(api_keys.revoke, by="ada", now=NOON).refused(NotFound)


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"scopes": frozenset({"jobs:burn"})}, Invalid),
        ({"scopes": frozenset({"users:write"})}, Invalid),
        ({"scopes": frozenset({"limits:lift"}), "issuer": Rights(Role.OPERATOR)}, NotAllowed),
        ({"name": ""}, Invalid),
        ({"name": "a\n"}, Invalid),
        ({"name": "n" * 101}, Invalid),
        ({"expires_at": NOON}, Invalid),
        ({"expires_at": NOON + timedelta(days=367)}, Invalid),
        ({"prefix": "../etc"}, Invalid),
        ({"secret_sha256": "A" * 64}, Invalid),
        ({"owner_state": User()}, NotFound),
        ({"owner_state": User("deactivated")}, InvalidState),
        ({"owner_state": User("active", role=Role.VIEWER)}, NotAllowed),
        ({"issuer": Rights(Role.VIEWER)}, NotAllowed),
        ({"issuer": Rights(Role.ADMIN, frozenset({"keys:write"}))}, NotAllowed),
        ({"issuer": Rights(Role.ADMIN, frozenset({"keys:write"})), "scopes": None}, NotAllowed),
    ],
    ids=str,
)
def test_what_may_not_be_issued(changed: dict[str, Any], refusal: Any) -> None:
    given(AGGREGATE).when(api_keys.issue, **asked(**changed)).refused(refusal)


def test_no_key_reaches_further_than_its_issuer_and_its_owner() -> None:
    """Every issuer, owner and role: what is issued, and what it may do later whatever its owner became."""
    issued = looked_at = 0
    for issuer, owner, role in product(Role, repeat=3):
        try:
            [event] = api_keys.issue(
                ApiKey(), **asked(issuer=Rights(issuer), owner_state=User("active", role=owner), role=role, scopes=None)
            )
        except NotAllowed:
            assert not (may_grant(issuer, role) and may_grant(owner, role))
            continue
        issued += 1
        key = AGGREGATE.fold(ApiKey(), [event])
        for later in Role:
            try:
                rights = api_keys.require_live(key, User("active", role=later), NOON)
            except NotAuthenticated:
                continue
            for permission in PERMISSIONS & GRANTS[rights.role].keys():
                looked_at += 1
                assert GRANTS[later].get(permission) in {"any", rights.reach(permission)}
    assert 20 < issued < 125
    assert looked_at > 100


@pytest.mark.parametrize(
    ("events", "owner", "now"),
    [
        ((), User("active", role=Role.ADMIN), NOON),
        ((ISSUED, REVOKED), User("active", role=Role.ADMIN), NOON),
        ((ISSUED,), User("active", role=Role.ADMIN), TOMORROW),
        ((ISSUED,), User("deactivated", role=Role.ADMIN), NOON),
        ((ISSUED,), User(), NOON),
        ((ISSUED,), User("active", role=Role.VIEWER), NOON),
    ],
)
def test_what_is_no_longer_good(events: Any, owner: User, now: datetime) -> None:
    live = AGGREGATE.fold(ApiKey(), [ISSUED])
    rights = api_keys.require_live(live, User("active", role=Role.ADMIN), NOON)
    assert rights == Rights(Role.OPERATOR, frozenset({"jobs:read"}))
    with pytest.raises(NotAuthenticated):
        api_keys.require_live(AGGREGATE.fold(ApiKey(), events), owner, now)


def test_a_key_has_one_text() -> None:
    text = api_keys.text_of("0123456789abcdef", bytes(range(32)))
    assert api_keys.parsed(text) == ("0123456789abcdef", bytes(range(32)))
    secret = text[20:]
    odd = [
        text[:-1],
        text + "A",
        text + "=",
        f" {text}",
        text.upper(),
        text[:-1] + "9",
        "",
        "sl__",
        f"sl_{'g' * 16}_{secret}",
    ]
    odd += [text.replace("sl_", "sk_"), text + "\n", text.replace("0123", "../.."), text.replace("0123", "٠123")]
    for one in odd:
        with pytest.raises(NotAuthenticated):
            api_keys.parsed(one)
