"""Signed URLs of the directory store: whoever holds one may do that one thing until it expires, and nothing else.

The signature is HMAC-SHA256 over the method, the key, every query parameter and the values of the headers that
the URL itself lists, written as one JSON list so that no two requests share a text. It is S3's idea (a presigned
URL) reduced to what we need, so that clients treat both stores alike: send these headers to that URL.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import msgspec
from msgspec import Struct

from ..keyfiles import made_once, put
from .port import SignedRequest, checked_key, safe_filename

OBJECTS_PATH = "/objects/"
KEY_FILE = "objects-hmac.key"
PREVIOUS_KEY_FILE = "objects-hmac.previous.key"
SECRET_BYTES = 32
QUERY_LENGTH_MAX = 4096

_DOMAIN = "sightline-objects-1"  # Signed too: should the secret ever serve another purpose, the texts stay apart.
_DIGEST_PREFIX = "sha-256=:"  # RFC 9530


class SignatureRefused(Exception):
    """`code` is `signature_invalid` (not ours, changed, or not what was signed) or `signature_expired`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class SignedGrant(Struct, frozen=True, kw_only=True):
    """What a verified request may do. Whether the body keeps its word is for whoever reads it.

    Attributes:
        method: `PUT` or `GET`.
        content_type: of a PUT, the type that it must be stored under; of a GET, the one to answer with, if not None.
        size_bytes: of a PUT, the exact size of its body.
        sha256: of a PUT, the hex digest that its body must have, if not None.
        filename: of a GET, the name to save under.
    """

    method: str
    key: str
    expires_at: datetime
    content_type: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    filename: str | None = None


class Secrets(Struct, frozen=True):
    """The secret that signs, and the one before it, which still verifies until its URLs have expired."""

    current: bytes
    previous: bytes | None = None

    def __repr__(self) -> str:
        return "Secrets(…)"


class UrlSigner:
    """Makes and verifies the URLs of one store. Pure but for the secrets: the time is an argument."""

    def __init__(self, keys: Secrets, public_url: str) -> None:
        self._keys = keys
        self._base_url = public_url.rstrip("/") + OBJECTS_PATH

    def put_request(
        self, key: str, *, content_type: str, size_bytes: int, sha256: str | None, expires_at: datetime
    ) -> SignedRequest:
        headers = {"Content-Length": str(size_bytes), "Content-Type": content_type, "If-None-Match": "*"}
        if sha256 is not None:
            headers["Content-Digest"] = f"{_DIGEST_PREFIX}{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
        return SignedRequest(method="PUT", url=self._url("PUT", key, {}, headers, expires_at), headers=headers)

    def get_url(self, key: str, *, filename: str, content_type: str | None, expires_at: datetime) -> str:
        query = {"filename": safe_filename(filename)} | ({"type": content_type} if content_type else {})
        return self._url("GET", key, query, {}, expires_at)

    def verify(self, method: str, key: str, query: str, headers: Mapping[str, str], now: datetime) -> SignedGrant:
        """The grant that a request carries.

        Args:
            method: as received; a HEAD is not a GET.
            key: the path after `/objects/`, percent-decoded once.
            query: the raw query string.
            headers: of the request; names in any case.
            now: aware.

        Raises:
            SignatureRefused: `signature_invalid`, or `signature_expired` for one that was valid once.
            InvalidKey: the path is not a key.
        """
        checked_key(key)
        parameters, signature = _parse_query(query)
        values = {name.lower(): value for name, value in headers.items()}
        bound = {name: values.get(name, "") for name in parameters.get("headers", "").split(";") if name}
        text = _text(method, key, parameters, bound)
        # Both secrets are always tried, so that the time taken does not tell which of them is in use.
        matches = [
            hmac.compare_digest(_signature(secret, text), signature)
            for secret in (self._keys.current, self._keys.previous or self._keys.current)
        ]
        if not any(matches):
            raise SignatureRefused("signature_invalid")
        expires_at = datetime.fromtimestamp(int(parameters["expires"]), UTC)
        if now >= expires_at:
            raise SignatureRefused("signature_expired")
        if method == "PUT":
            return _put_grant(key, bound, expires_at)
        return SignedGrant(
            method=method,
            key=key,
            expires_at=expires_at,
            content_type=parameters.get("type"),
            filename=parameters.get("filename"),
        )

    def _url(self, method: str, key: str, query: dict[str, str], headers: dict[str, str], expires_at: datetime) -> str:
        bound = {name.lower(): value for name, value in headers.items()}
        parameters = query | {"expires": str(int(expires_at.timestamp()))}
        if bound:
            parameters["headers"] = ";".join(bound)
        signature = _signature(self._keys.current, _text(method, checked_key(key), parameters, bound))
        return f"{self._base_url}{key}?{urlencode(parameters)}&signature={signature.decode()}"


def load_secrets(keys_dir: Path) -> Secrets:
    """The store's secrets, the current one made on first use. Processes that start together agree on one.

    Raises:
        ValueError: a file does not hold 32 bytes.
        OSError: the directory cannot be written or read.
    """
    current = keys_dir / KEY_FILE
    if not current.exists():
        made_once(current, secrets.token_bytes(SECRET_BYTES))
    previous = keys_dir / PREVIOUS_KEY_FILE
    return Secrets(_read_secret(current), _read_secret(previous) if previous.exists() else None)


def rotate_secret(keys_dir: Path) -> None:
    """Makes a new signing secret; the one until now still verifies. Processes take it up when they start again.

    Rotate no sooner than the longest URL lives: the secret before the previous one is gone.
    """
    current = load_secrets(keys_dir).current
    put(keys_dir / PREVIOUS_KEY_FILE, current)  # First: at no moment is the old secret in neither file.
    put(keys_dir / KEY_FILE, secrets.token_bytes(SECRET_BYTES))


def _text(method: str, key: str, parameters: Mapping[str, str], bound: Mapping[str, str]) -> bytes:
    return msgspec.json.encode([_DOMAIN, method, key, sorted(parameters.items()), list(bound.items())])


def _signature(secret: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, text, hashlib.sha256).hex().encode()


def _parse_query(query: str) -> tuple[dict[str, str], bytes]:
    """Parameters without the signature, and the signature. A repeated name is refused: two readers might differ."""
    if len(query) > QUERY_LENGTH_MAX:
        raise SignatureRefused("signature_invalid")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=8)
    except ValueError as error:
        raise SignatureRefused("signature_invalid") from error
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise SignatureRefused("signature_invalid")
    return parameters, parameters.pop("signature", "").encode()


def _put_grant(key: str, bound: Mapping[str, str], expires_at: datetime) -> SignedGrant:
    digest = bound.get("content-digest")
    return SignedGrant(
        method="PUT",
        key=key,
        expires_at=expires_at,
        content_type=bound["content-type"],
        size_bytes=int(bound["content-length"]),
        sha256=base64.b64decode(digest[len(_DIGEST_PREFIX) : -1]).hex() if digest else None,
    )


def _read_secret(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"{path} holds {len(secret)} bytes where a signing secret has {SECRET_BYTES}")
    return secret
