"""HTTPS by the process itself: what it takes for a certificate, what it speaks, and where it insists."""

import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.conftest_log import LogDatabase
from tests.conftest_parts import wait_for
from tests.http.process import Running, started

from sightline.adapters import tls
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.settings import Settings, SettingsError

SECRET = "x" * 32


def certificate(directory: Path, name: str = "localhost", *, password: bytes | None = None) -> tuple[str, str]:
    """A self-signed one for 127.0.0.1, and its key: the paths of two files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    cert_path, key_path = directory / f"{name}.pem", directory / f"{name}.key"
    cert_path.write_bytes(signed.public_bytes(pem))
    key_path.touch(mode=0o600)
    key_path.write_bytes(key.private_bytes(pem, pkcs8, encryption))
    return str(cert_path), str(key_path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def running(
    door_database: LogDatabase,
    valkey_server: ValkeyServer,
    tmp_path_factory: pytest.TempPathFactory,
    pair: tuple[str, str],
) -> Iterator[Running]:
    cert, key = pair
    directory = tmp_path_factory.mktemp("server")
    with started(
        directory, database_url=door_database.dsn, redis_url=valkey_server.url, tls_cert=cert, tls_key=key
    ) as running:
        yield running


def _trusting(pair: tuple[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=pair[0])


def test_a_client_that_verifies_is_served(running: Running, pair: tuple[str, str]) -> None:
    with httpx.Client(base_url=running.url, verify=_trusting(pair)) as client:
        answer = client.get("/livez")
        assert answer.status_code == 200
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert client.get("/nothing").headers["Strict-Transport-Security"] == "max-age=31536000"
        announced = client.post("/v1/assets", json={"filename": "a", "content_type": "image/png", "size_bytes": 3})
        assert announced.json()["upload"]["url"].startswith(f"{running.url}/objects/")
    [said] = [line for line in running.lines() if line["event"] == "settings"]
    assert said["tls_cert"] == pair[0]


def test_a_client_that_does_not_know_the_certificate_is_not_served(running: Running) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{running.url}/livez")


def _handshake(running: Running, context: ssl.SSLContext) -> tuple[str | None, str]:
    raw = socket.create_connection(("127.0.0.1", running.port), timeout=60)
    with raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as secured:
        cipher = secured.cipher()
        return secured.version(), cipher[0] if cipher else ""


def test_what_it_speaks(running: Running, pair: tuple[str, str]) -> None:
    assert _handshake(running, _trusting(pair))[0] == "TLSv1.3"
    older = _trusting(pair)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    version, cipher = _handshake(running, older)
    assert version == "TLSv1.2"
    assert cipher.startswith("ECDHE-")
    assert "GCM" in cipher or "CHACHA20" in cipher


@pytest.mark.parametrize("ciphers", ["ECDHE+AES+SHA256", "AES128-GCM-SHA256", "AES256-SHA"])
def test_what_it_does_not_speak(running: Running, pair: tuple[str, str], ciphers: str) -> None:
    weak = _trusting(pair)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers(ciphers)
    with pytest.raises(ssl.SSLError):
        _handshake(running, weak)


def test_versions_before_are_refused(running: Running, pair: tuple[str, str]) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{running.port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        input=b"",
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert b"Cipher is (NONE)" in done.stdout


def test_plain_http_gets_no_answer(running: Running) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{running.port}/livez")


def test_sighup_reads_a_renewed_certificate(running: Running, pair: tuple[str, str], tmp_path: Path) -> None:
    """And goes on with the old one where the new one is no good."""
    with httpx.Client(base_url=running.url, verify=_trusting(pair)) as before:
        before.get("/livez")
        original = [Path(one).read_bytes() for one in pair]
        Path(pair[0]).write_bytes(b"nonsense")
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: _said(running, "certificate_refused"))
        Path(pair[0]).write_bytes(original[0])
        assert httpx.get(f"{running.url}/livez", verify=_trusting(pair)).status_code == 200
        renewed = certificate(tmp_path, "renewed")
        for path, new in zip(pair, renewed, strict=True):
            Path(path).write_bytes(Path(new).read_bytes())
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: _said(running, "certificate_read"))
        assert before.get("/livez").status_code == 200  # open connections stay
    assert httpx.get(f"{running.url}/livez", verify=_trusting(renewed)).status_code == 200


def _said(running: Running, event: str) -> bool:
    return any(line["event"] == event for line in running.lines())


def _refused(tls_cert: str = "", tls_key: str = "") -> str:
    with pytest.raises(SettingsError) as refused:
        tls.load_context(Settings(tls_cert=tls_cert, tls_key=tls_key))
    return str(refused.value)


def test_both_or_neither(pair: tuple[str, str]) -> None:
    assert tls.load_context(Settings()) is None
    assert tls.load_context(Settings(tls_cert=pair[0], tls_key=pair[1])) is not None
    assert "both, or neither" in _refused(tls_cert=pair[0])
    assert "both, or neither" in _refused(tls_key=pair[1])


def test_files_that_are_none(pair: tuple[str, str], tmp_path: Path) -> None:
    other = certificate(tmp_path, "other")
    locked = certificate(tmp_path, "locked", password=b"canary")
    nonsense = tmp_path / "nonsense"
    nonsense.touch(mode=0o600)
    assert "No such file" in _refused(tls_cert=pair[0], tls_key=str(tmp_path / "gone"))
    for cert, key in ((pair[0], other[1]), (str(nonsense), pair[1]), (pair[0], str(nonsense)), locked):
        assert "no certificate with its key" in _refused(tls_cert=cert, tls_key=key)
    assert "no certificate with its key" in _refused(tls_cert=str(tmp_path / "gone"), tls_key=pair[1])


def test_a_key_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    for mode in (0o644, 0o604, 0o601, 0o666):
        Path(key).chmod(mode)
        assert "chmod o=" in _refused(tls_cert=cert, tls_key=key)
    for mode in (0o600, 0o400, 0o640, 0o440):
        Path(key).chmod(mode)
        assert tls.load_context(Settings(tls_cert=cert, tls_key=key)) is not None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_no_secret_crosses_a_network_in_the_clear(host: str) -> None:
    with pytest.raises(SettingsError, match="in the clear"):
        tls.require_private_wire(Settings(host=host, auth_enabled=True, secret_key=SECRET))
    tls.require_private_wire(Settings(host=host, tls_cert="x", tls_key="x"))
    tls.require_private_wire(Settings(host=host, trusted_proxies=["10.0.0.1/32"]))
    tls.require_private_wire(Settings(host="127.0.0.1"))


def test_urls_follow(pair: tuple[str, str]) -> None:
    secured = Settings(tls_cert=pair[0], tls_key=pair[1])
    assert secured.public_url == "https://127.0.0.1:8000"
    assert Settings(host="::1").public_url == "http://[::1]:8000"
    assert Settings(tls_cert="x", base_url="https://api.example.org/").public_url == "https://api.example.org"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert", "{cert}"], "both, or neither"),
        (["--tls-cert", "{cert}", "--tls-key", "{cert}x"], "No such file"),
        (["--host", "0.0.0.0"], "in the clear"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "up"])
def test_mistakes_are_one_line(
    command: str, options: list[str], words: str, pair: tuple[str, str], tmp_path: Path, valkey_server: ValkeyServer
) -> None:
    environ = {"AUTH_ENABLED": "true", "SECRET_KEY": SECRET, "DATABASE_URL": "postgresql:///x"}
    environ |= {"REDIS_URL": valkey_server.url, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "sightline", command, "--data-dir", str(tmp_path)]
        + [one.format(cert=pair[0]) for one in options],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
