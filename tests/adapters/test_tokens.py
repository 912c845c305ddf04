"""Tokens: one form is taken, and whatever differs from it in anything is refused, all in the same way."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest

from sightline.adapters import tokens as tokens_
from sightline.adapters.settings import Settings
from sightline.adapters.tokens import AUDIENCE, ISSUER, Tokens
from sightline.domain.access import NotAuthenticated

OLD, NEW, FOREIGN = (bytes([n]) * 32 for n in (1, 2, 3))
TOKENS = Tokens([NEW, OLD], lifetime_s=1800)
KID, OLD_KID = tokens_._kid(NEW), tokens_._kid(OLD)
ADA = UUID(int=7)


def b64(content: bytes | str) -> str:
    return base64.urlsafe_b64encode(content.encode() if isinstance(content, str) else content).rstrip(b"=").decode()


def claims(**changed: Any) -> dict[str, Any]:
    """Good ones, with changes; a claim that is set to ... is left out."""
    now = int(time.time())
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(ADA),
        "iat": now,
        "exp": now + 60,
        "jti": str(uuid4()),
        "gen": 1,
    }
    return {name: value for name, value in (good | changed).items() if value is not ...}


def made(header: dict[str, Any] | str, payload: dict[str, Any] | str | None = None, secret: bytes = NEW) -> str:
    """A token with a signature that fits, whatever it says."""
    said = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"), sort_keys=True)
    body = payload if isinstance(payload, str) else json.dumps(claims() if payload is None else payload)
    signed = f"{b64(said)}.{b64(body)}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def header(**changed: Any) -> dict[str, Any]:
    good = {"alg": "HS256", "kid": KID, "typ": "JWT"}
    return {name: value for name, value in (good | changed).items() if value is not ...}


def with_claims(**changed: Any) -> str:
    return made(header(), claims(**changed))


def good() -> str:
    return made(header())


def in_parts(change: Callable[[list[str]], list[str]]) -> str:
    return ".".join(change(good().split(".")))


def unsigned(alg: str) -> str:
    return f"{b64(json.dumps(header(alg=alg)))}.{b64(json.dumps(claims()))}."


def next_in_group(character: str) -> str:
    """Another last character of a signature that decodes to the same bytes: the bits that do not count differ."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(character) + 1]


NOW = int(time.time())
FORGED: dict[str, Callable[[], str]] = {
    "alg none": lambda: unsigned("none"),
    "alg NONE": lambda: unsigned("NONE"),
    "alg none, with a signature": lambda: made(header(alg="none")),
    "alg HS512, signed with HS256": lambda: made(header(alg="HS512")),
    "alg HS384": lambda: jwt.encode(claims(), NEW * 2, algorithm="HS384", headers={"kid": KID}),
    "alg HS512": lambda: jwt.encode(claims(), NEW * 2, algorithm="HS512", headers={"kid": KID}),
    "alg RS256, signed with a secret": lambda: made(header(alg="RS256")),
    "alg ES256, with zeros": lambda: f"{b64(json.dumps(header(alg='ES256')))}.{b64(json.dumps(claims()))}.{'A' * 86}",
    "alg missing": lambda: made(header(alg=...)),
    "alg null": lambda: made(header(alg=None)),
    "alg a list": lambda: made(header(alg=["HS256"])),
    "typ missing": lambda: made(header(typ=...)),
    "typ at+jwt": lambda: made(header(typ="at+jwt")),
    "kid missing": lambda: made(header(kid=...)),
    "kid unknown": lambda: made(header(kid="0" * 16)),
    "kid of a secret that is not ours": lambda: made(header(kid=tokens_._kid(FOREIGN)), secret=FOREIGN),
    "kid of the other secret": lambda: made(header(kid=OLD_KID)),
    "kid traversal": lambda: made(header(kid="../../../../dev/null"), secret=b""),
    "kid of SQL": lambda: made(header(kid="x' UNION SELECT 'secret"), secret=b"secret"),
    "kid a number": lambda: made(header(kid=1)),
    "jku": lambda: made(header(jku="https://example.com/keys")),
    "x5u": lambda: made(header(x5u="https://example.com/cert")),
    "jwk": lambda: made(header(jwk={"kty": "oct", "k": b64(FOREIGN)}), secret=FOREIGN),
    "crit": lambda: made(header(crit=["exp"])),
    "b64 false": lambda: made(header(b64=False, crit=["b64"])),
    "zip": lambda: made(header(zip="DEF")),
    "header with a field twice": lambda: made(f'{{"alg":"none","alg":"HS256","kid":"{KID}","typ":"JWT"}}'),
    "header with blanks": lambda: made(json.dumps(header(), sort_keys=True)),
    "header no object": lambda: made("[]"),
    "header no JSON": lambda: made("{"),
    "header nested": lambda: made("[" * 2000),
    "iss missing": lambda: with_claims(iss=...),
    "iss another": lambda: with_claims(iss="https://example.com"),
    "iss a list": lambda: with_claims(iss=[ISSUER]),
    "aud missing": lambda: with_claims(aud=...),
    "aud another": lambda: with_claims(aud="elsewhere"),
    "aud a list": lambda: with_claims(aud=[AUDIENCE]),
    "sub missing": lambda: with_claims(sub=...),
    "sub no id": lambda: with_claims(sub="admin"),
    "sub in another spelling": lambda: with_claims(sub=ADA.hex),
    "sub in braces": lambda: with_claims(sub=f"{{{ADA}}}"),
    "sub a number": lambda: with_claims(sub=7),
    "sub with NUL": lambda: with_claims(sub=f"{ADA}\0"),
    "iat missing": lambda: with_claims(iat=...),
    "iat in the future": lambda: with_claims(iat=NOW + 3600, exp=NOW + 7200),
    "iat a text": lambda: with_claims(iat=str(NOW)),
    "iat true": lambda: with_claims(iat=True),
    "exp missing": lambda: with_claims(exp=...),
    "exp over": lambda: with_claims(iat=NOW - 3600, exp=NOW - 1800),
    "exp over by less than clocks differ": lambda: with_claims(iat=NOW - 60, exp=int(time.time()) - 1),
    "exp a text": lambda: with_claims(exp=str(NOW + 60)),
    "exp a fraction": lambda: with_claims(exp=NOW + 60.5),
    "exp huge": lambda: with_claims(exp=10**30),
    "exp infinite": lambda: made(header(), json.dumps(claims()).replace(str(claims()["exp"]), "Infinity")),
    "exp null": lambda: with_claims(exp=None),
    "jti missing": lambda: with_claims(jti=...),
    "jti no id": lambda: with_claims(jti="1"),
    "gen missing": lambda: with_claims(gen=...),
    "gen 0": lambda: with_claims(gen=0),
    "gen a text": lambda: with_claims(gen="1"),
    "gen true": lambda: with_claims(gen=True),
    "gen a fraction": lambda: with_claims(gen=1.5),
    "nbf": lambda: with_claims(nbf=NOW + 3600),
    "a role of its own": lambda: with_claims(role="ADMIN"),
    "claims no object": lambda: made(header(), "[]"),
    "claims no JSON": lambda: made(header(), "{"),
    "claims no text": lambda: in_parts(lambda p: [p[0], b64(b"\xff\xfe"), p[2]]),
    "another secret": lambda: made(header(), secret=FOREIGN),
    "no secret": lambda: made(header(), secret=b""),
    "signature of nothing": lambda: in_parts(lambda p: [*p[:2], ""]),
    "signature cut": lambda: in_parts(lambda p: [*p[:2], p[2][:-1]]),
    "signature longer": lambda: in_parts(lambda p: [*p[:2], p[2] + "A"]),
    "signature padded": lambda: in_parts(lambda p: [*p[:2], p[2] + "="]),
    "signature in another spelling": lambda: in_parts(lambda p: [*p[:2], p[2][:-1] + next_in_group(p[2][-1])]),
    "signature of another token": lambda: in_parts(lambda p: [*p[:2], with_claims(gen=2).split(".")[2]]),
    "claims of another token": lambda: in_parts(lambda p: [p[0], b64(json.dumps(claims(gen=2))), p[2]]),
    "claims padded": lambda: in_parts(lambda p: [p[0], p[1] + "=", p[2]]),
    "standard base64": lambda: in_parts(lambda p: [p[0], p[1] + "+/", p[2]]),
    "two parts": lambda: in_parts(lambda p: p[:2]),
    "four parts": lambda: in_parts(lambda p: [*p, ""]),
    "five parts, as encrypted ones have": lambda: in_parts(lambda p: [*p, "", ""]),
    "a blank before": lambda: " " + good(),
    "a line after": lambda: good() + "\n",
    "NUL inside": lambda: good().replace(".", "\0.", 1),
    "not ASCII": lambda: good().replace("e", "е", 1),  # a Cyrillic letter
    "huge": lambda: with_claims(jti="x" * 100_000),
    "a megabyte": lambda: "A" * 1_000_000,
    "empty": lambda: "",
    "dots": lambda: "..",
    "an API key": lambda: f"sl_{'0' * 16}_{'A' * 43}",
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_what_is_not_a_token_of_ours_is_refused(forge: Callable[[], str]) -> None:
    with pytest.raises(NotAuthenticated) as refusal:
        TOKENS.verify(forge())
    assert "Traceback" not in refusal.value.detail


def test_there_are_enough_forgeries() -> None:
    assert len(FORGED) >= 40


def test_the_good_one_is_taken() -> None:
    """The control: what the forgeries were made from is good, and so is what we issue."""
    found = TOKENS.verify(good())
    assert (found.user_id, found.generation) == (ADA, 1)
    token, expires_at = TOKENS.issue(ADA, 3)
    issued = TOKENS.verify(token)
    assert (issued.user_id, issued.generation, issued.expires_at) == (ADA, 3, expires_at)
    assert (issued.expires_at - issued.issued_at).total_seconds() == 1800
    assert len(token) < tokens_.TOKEN_CHARS_MAX / 2


def test_a_library_that_is_less_strict_takes_some_of_them() -> None:
    """The control of the forgeries: they are refused for what they say, not because nobody could read them."""
    taken = 0
    for forge in FORGED.values():
        try:
            jwt.decode(forge(), NEW, algorithms=["HS256"], audience=AUDIENCE, issuer=ISSUER)
        except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError, RecursionError):
            continue
        taken += 1
    assert taken > 10


def test_the_newest_secret_signs_and_all_verify() -> None:
    before, after = Tokens([OLD], lifetime_s=60), Tokens([NEW, OLD], lifetime_s=60)
    token, _ = before.issue(ADA, 1)
    assert after.verify(token).user_id == ADA
    assert jwt.get_unverified_header(after.issue(ADA, 1)[0])["kid"] == KID
    for stranger in (Tokens([NEW], lifetime_s=60), Tokens([FOREIGN], lifetime_s=60)):
        with pytest.raises(NotAuthenticated):
            stranger.verify(token)


def test_secrets_come_from_the_settings_and_stay_there() -> None:
    given = Tokens.of(Settings(secret_key="n" * 32 + ", " + "o" * 32, jwt_expire_minutes=1), b"f" * 32)
    assert given.verify(Tokens([b"o" * 32], lifetime_s=60).issue(ADA, 1)[0]).user_id == ADA
    own = Tokens.of(Settings(), b"f" * 32)
    assert own.verify(Tokens([b"f" * 32], lifetime_s=60).issue(ADA, 1)[0]).user_id == ADA
    assert repr(given) == "Tokens(…)"
    assert "n" * 32 not in given.issue(ADA, 1)[0]


def test_one_that_is_met_again_is_refused_once_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens([NEW], lifetime_s=60)
    token, expires_at = tokens.issue(ADA, 1)
    decode, decoded = jwt.decode, []

    def noted(given: str, *args: Any, **more: Any) -> Any:
        decoded.append(given)
        return decode(given, *args, **more)

    monkeypatch.setattr(jwt, "decode", noted)
    assert tokens.verify(token) == tokens.verify(token)
    assert decoded == [token]
    monkeypatch.setattr(time, "time", expires_at.timestamp)
    for _ in range(2):
        with pytest.raises(NotAuthenticated):
            tokens.verify(token)


def test_one_letter_beside_a_token_that_was_met_is_another_token() -> None:
    tokens = Tokens([NEW], lifetime_s=60)
    token, _ = tokens.issue(ADA, 1)
    tokens.verify(token)
    for other in (token[:-1], f"{token}=", f" {token}", token.swapcase(), f"{token}\ud800", token + "A" * 2_000):
        with pytest.raises(NotAuthenticated):
            tokens.verify(other)


def test_no_more_tokens_are_known_than_a_bound_and_no_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_, "VERIFIED_MAX", 3)
    tokens = Tokens([NEW], lifetime_s=60)
    for _ in range(5):
        tokens.verify(tokens.issue(uuid4(), 1)[0])
        with pytest.raises(NotAuthenticated):
            tokens.verify(made(header(), claims(), FOREIGN))
    assert len(tokens._verified) == 3
