"""The directory store's signatures: what they let through, and what each change to a request costs."""

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.adapters.objects.port import InvalidKey, SignedRequest
from sightline.adapters.objects.signing import (
    KEY_FILE,
    PREVIOUS_KEY_FILE,
    Secrets,
    SignatureRefused,
    SignedGrant,
    UrlSigner,
    load_secrets,
    rotate_secret,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=15)
DIGEST = "ab" * 32
SIGNER = UrlSigner(Secrets(b"1" * 32), "https://sightline.test/")


def signed_put(signer: UrlSigner = SIGNER, sha256: str | None = DIGEST) -> SignedRequest:
    return signer.put_request("up/a.png", content_type="image/png", size_bytes=70, sha256=sha256, expires_at=LATER)


def signed_get() -> str:
    return SIGNER.get_url("up/a.png", filename="Bär.png", content_type="image/png", expires_at=LATER)


def query_of(url: str) -> str:
    return urlsplit(url).query


def refusal(
    query: str,
    headers: dict[str, str] | None = None,
    *,
    signer: UrlSigner = SIGNER,
    method: str = "PUT",
    key: str = "up/a.png",
    now: datetime = NOON,
) -> str:
    with pytest.raises(SignatureRefused) as refused:
        signer.verify(method, key, query, headers or {}, now)
    return refused.value.code


def test_an_upload_as_signed() -> None:
    request = signed_put()
    assert request.url.startswith("https://sightline.test/objects/up/a.png?")
    granted = SignedGrant(
        method="PUT", key="up/a.png", expires_at=LATER, content_type="image/png", size_bytes=70, sha256=DIGEST
    )
    assert SIGNER.verify("PUT", "up/a.png", query_of(request.url), request.headers, NOON) == granted
    shouted = {name.upper(): value for name, value in request.headers.items()} | {"X-OTHER": "1"}
    assert SIGNER.verify("PUT", "up/a.png", query_of(request.url), shouted, NOON) == granted


def test_a_download_as_signed() -> None:
    assert SIGNER.verify("GET", "up/a.png", query_of(signed_get()), {"Range": "bytes=0-1"}, NOON) == SignedGrant(
        method="GET", key="up/a.png", expires_at=LATER, content_type="image/png", filename="Bär.png"
    )


def test_the_last_moment() -> None:
    request = signed_put()
    query = query_of(request.url)
    SIGNER.verify("PUT", "up/a.png", query, request.headers, LATER - timedelta(microseconds=1))
    assert refusal(query, request.headers, now=LATER) == "signature_expired"
    # Only whoever held a true signature is told that its time is over.
    assert refusal(query.replace("signature=", "signature=0"), request.headers, now=LATER) == "signature_invalid"


@pytest.mark.parametrize("name", ["Content-Length", "Content-Type", "If-None-Match", "Content-Digest"])
@pytest.mark.parametrize("value", [None, "", "71"])
def test_every_header_is_bound(name: str, value: str | None) -> None:
    request = signed_put()
    changed = {each: other for each, other in request.headers.items() if each != name}
    if value is not None:
        changed[name] = value
    assert refusal(query_of(request.url), changed) == "signature_invalid"


def test_method_and_key_are_bound() -> None:
    put, get = signed_put(), query_of(signed_get())
    for method in ("GET", "HEAD", "DELETE", "put"):
        assert refusal(query_of(put.url), put.headers, method=method) == "signature_invalid"
    assert refusal(get, method="PUT") == "signature_invalid"
    assert refusal(get, method="GET", key="up/b.png") == "signature_invalid"
    with pytest.raises(InvalidKey):
        SIGNER.verify("GET", "up/../up/a.png", get, {}, NOON)


@pytest.mark.parametrize("parameter", ["filename", "type", "expires", "headers", "signature"])
def test_every_parameter_is_bound(parameter: str) -> None:
    put = signed_put()
    method, url = ("PUT", put.url) if parameter == "headers" else ("GET", signed_get())
    pairs = dict(parse_qsl(query_of(url)))
    for changed in (pairs | {parameter: pairs[parameter] + "0"}, {**pairs, parameter: ""}, _without(pairs, parameter)):
        assert refusal(urlencode(changed), put.headers, method=method) == "signature_invalid"


def test_parameters_can_neither_be_added_nor_repeated() -> None:
    query = query_of(signed_get())
    for extra in ("&x=1", "&filename=a.html", "&expires=9999999999", "&headers=", f"&{query}", "&x", "&=", "&%ff=%ff"):
        assert refusal(query + extra, method="GET") == "signature_invalid"


@pytest.mark.parametrize("query", ["", "signature=", "signature=é", "expires=1&signature=0", "x" * 5000, "&" * 3000])
def test_no_signature_at_all(query: str) -> None:
    assert refusal(query) == "signature_invalid"


@given(query=st.text(), header=st.text())
def test_garbage_is_refused_and_never_an_error(query: str, header: str) -> None:
    printable = query.encode("utf-8", "replace").decode()
    assert refusal(printable, {header: query}) == "signature_invalid"
    assert refusal(f"headers={urlencode({'': printable})}&expires=1&signature={'0' * 64}") == "signature_invalid"


def test_nothing_moves_between_the_fields_of_the_text() -> None:
    """Signed texts differ wherever requests do, even if their parts put end to end are the same."""
    urls = [
        SIGNER.get_url("a/b", filename="c", content_type=None, expires_at=LATER),
        SIGNER.get_url("a", filename="b/c", content_type=None, expires_at=LATER),
        SIGNER.get_url("a/b", filename='c","x', content_type=None, expires_at=LATER),
    ]
    assert len({url.partition("signature=")[2] for url in urls}) == len(urls)


def test_another_installations_signature() -> None:
    stranger = UrlSigner(Secrets(b"2" * 32), "https://sightline.test")
    request = signed_put(stranger)
    assert refusal(query_of(request.url), request.headers) == "signature_invalid"
    assert stranger.verify("PUT", "up/a.png", query_of(request.url), request.headers, NOON).size_bytes == 70


def test_rotation_keeps_old_urls_for_one_round(tmp_path: Path) -> None:
    first = load_secrets(tmp_path)
    old = signed_put(UrlSigner(first, "https://sightline.test"))
    rotate_secret(tmp_path)
    second = load_secrets(tmp_path)
    assert second.current != first.current
    assert second.previous == first.current
    UrlSigner(second, "").verify("PUT", "up/a.png", query_of(old.url), old.headers, NOON)
    rotate_secret(tmp_path)
    third = UrlSigner(load_secrets(tmp_path), "")
    assert refusal(query_of(old.url), old.headers, signer=third) == "signature_invalid"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([KEY_FILE, PREVIOUS_KEY_FILE])


def test_the_secret_is_private_and_not_printed(tmp_path: Path) -> None:
    secrets = load_secrets(tmp_path / "new" / "keys")
    path = tmp_path / "new" / "keys" / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(secrets.current) == 32
    assert secrets.current.hex() not in repr(secrets)
    assert repr(secrets.current) not in repr(secrets)


def test_a_broken_secret_is_not_used(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        load_secrets(tmp_path)


def test_processes_that_start_together_agree_on_one_secret(tmp_path: Path) -> None:
    together = Barrier(16)  # Threads will do: they meet in the file system alone.

    def start(_: int) -> Secrets:
        together.wait(timeout=60)
        return load_secrets(tmp_path / "keys")

    with ThreadPoolExecutor(together.parties) as pool:
        found = list(pool.map(start, range(together.parties)))
    assert len({secrets.current for secrets in found}) == 1
    assert [path.name for path in (tmp_path / "keys").iterdir()] == [KEY_FILE]


def _without(pairs: dict[str, str], name: str) -> dict[str, str]:
    return {each: value for each, value in pairs.items() if each != name}
