"""TLS: certificate and key of the API's own listener, checked before anything is started.

A key that others on this machine can read is refused: whoever has read it can be us, and nobody would notice. Its group
may read it, as `ssl-cert` of Debian and the mounted secrets of Kubernetes (`defaultMode: 0440`, `fsGroup`) have it.
"""

import ssl
import stat
from pathlib import Path

from .settings import Settings, SettingsError, is_loopback

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2: forward secrecy and authenticated; 1.3 has no others
HANDSHAKE_S_MAX = 10.0


def require_private_wire(settings: Settings) -> None:
    """Tokens and passwords cross no network in the clear.

    Raises:
        SettingsError: the API would listen to other machines, and neither it nor a proxy speaks TLS.
    """
    if not (is_loopback(settings.host) or settings.tls_cert or settings.trusted_proxies):
        raise SettingsError(
            f"on {settings.host!r} tokens and passwords would cross the network in the clear: give --tls-cert and"
            " --tls-key, or name the proxy that speaks TLS in SIGHTLINE_TRUSTED_PROXIES"
        )


def load_context(settings: Settings) -> ssl.SSLContext | None:
    """What the listener speaks; None: plain HTTP.

    Raises:
        SettingsError: one of certificate and key without the other, or they cannot be used.
    """
    if not settings.tls_cert and not settings.tls_key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, settings)
    return context


def load_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    """Read the files, for connections that are opened from now on.

    Raises:
        SettingsError: as load_context(); the context keeps what it had.
    """
    if not (settings.tls_cert and settings.tls_key):
        raise SettingsError("SIGHTLINE_TLS_CERT and SIGHTLINE_TLS_KEY: both, or neither")
    _require_closed(Path(settings.tls_key))
    try:
        # Tried apart first: a pair that does not fit would leave the context with one half of it.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, _no_password)
        context.load_cert_chain(settings.tls_cert, settings.tls_key, _no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise SettingsError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate with its key: {error}"
        ) from error


def _no_password() -> str:
    """Instead of a prompt on the terminal, which nobody answers."""
    raise ValueError("the key is encrypted")


def _require_closed(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    if mode & stat.S_IRWXO:
        raise SettingsError(f"{path} can be read by everybody on this machine: chmod o= {path}")
