"""Signatures: the specification's own example, and everything that must not verify."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sightline.adapters.standard_webhooks import (
    KEY_FILE,
    PREVIOUS_KEY_FILE,
    PUBLIC_KEY_FILE,
    CallbackSigner,
    NotSigned,
    headers,
    new_secret,
    rotate_callback_key,
    secret_bytes,
    secret_text,
    signature,
    verify,
)

# The example that the specification's libraries are all tested with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID, STAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
NOW = datetime.fromtimestamp(STAMP, UTC)
SIGNED = headers(MESSAGE_ID, STAMP, [SIGNATURE])


def test_the_specifications_example_is_signed_so() -> None:
    assert signature(SECRET, MESSAGE_ID, STAMP, BODY) == SIGNATURE
    assert verify(SIGNED, BODY, [SECRET], NOW) == MESSAGE_ID
    assert verify(headers(MESSAGE_ID, STAMP, ["v1,AAAA", "v2,x", SIGNATURE]), BODY, [new_secret(), SECRET], NOW)


@pytest.mark.parametrize(
    ("changed", "body", "late_s"),
    [
        ({}, BODY + b" ", 0),
        ({"webhook-id": "msg_other"}, BODY, 0),
        ({"webhook-timestamp": str(STAMP + 1)}, BODY, 0),
        ({"webhook-timestamp": f"0{STAMP}"}, BODY, 0),
        ({"webhook-timestamp": "now"}, BODY, 0),
        ({"webhook-signature": ""}, BODY, 0),
        ({"webhook-signature": SIGNATURE.replace("v1", "v2")}, BODY, 0),
        ({"webhook-signature": " ".join(["v1,x"] * 10 + [SIGNATURE])}, BODY, 0),
        ({}, BODY, 301),
        ({}, BODY, -301),
    ],
    ids=str,
)
def test_what_was_changed_or_is_old_is_refused(changed: dict[str, str], body: bytes, late_s: int) -> None:
    with pytest.raises(NotSigned):
        verify(SIGNED | changed, body, [SECRET], NOW + timedelta(seconds=late_s))


@pytest.mark.parametrize("missing", SIGNED)
def test_a_message_without_a_header_is_refused(missing: str) -> None:
    with pytest.raises(NotSigned):
        verify({name: value for name, value in SIGNED.items() if name != missing}, BODY, [SECRET], NOW)


def test_a_check_that_takes_anything_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with comparison off, the changed message passes."""
    monkeypatch.setattr("sightline.adapters.standard_webhooks.hmac.compare_digest", lambda *_: True)
    assert verify(SIGNED, BODY + b" ", [SECRET], NOW)


def test_secrets_are_24_to_64_bytes() -> None:
    assert len(secret_bytes(new_secret())) == 32
    assert new_secret() != new_secret()
    for length in (24, 64):
        assert secret_bytes(secret_text(b"x" * length)) == b"x" * length
    for wrong in (secret_text(b"x" * 23), secret_text(b"x" * 65), "whsec_…", "whsec_"):
        with pytest.raises(ValueError, match="secret"):
            secret_bytes(wrong)


def test_the_services_key_is_made_once_and_verified_by_its_public_half(tmp_path: Path) -> None:
    signer = CallbackSigner.load(tmp_path)
    assert (
        CallbackSigner.load(tmp_path).public_keys
        == signer.public_keys
        == [(tmp_path / PUBLIC_KEY_FILE).read_text().strip()]
    )
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    signed = headers(MESSAGE_ID, STAMP, signer.signatures(MESSAGE_ID, STAMP, BODY))
    assert verify(signed, BODY, signer.public_keys, NOW) == MESSAGE_ID
    other = CallbackSigner.load(tmp_path / "other")
    for body, keys in ((BODY + b" ", signer.public_keys), (BODY, other.public_keys), (BODY, [SECRET])):
        with pytest.raises(NotSigned):
            verify(signed, body, keys, NOW)
    assert base64.b64encode((tmp_path / KEY_FILE).read_bytes()).decode() not in repr(signer)


def test_while_the_services_key_rotates_both_sign(tmp_path: Path) -> None:
    before = CallbackSigner.load(tmp_path)
    rotate_callback_key(tmp_path)
    after = CallbackSigner.load(tmp_path)
    assert after.public_keys == [after.public_keys[0], *before.public_keys]
    signed = headers(MESSAGE_ID, STAMP, after.signatures(MESSAGE_ID, STAMP, BODY))
    for key in after.public_keys:
        assert verify(signed, BODY, [key], NOW)
    rotate_callback_key(tmp_path)
    assert before.public_keys[0] not in CallbackSigner.load(tmp_path).public_keys
    (tmp_path / PREVIOUS_KEY_FILE).write_bytes(b"short")
    with pytest.raises(ValueError, match="32"):
        CallbackSigner.load(tmp_path)
