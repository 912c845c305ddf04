"""What the environment may say, read once at the start of each process.

Every variable is `SIGHTLINE_<NAME>`; the names that the seeds used are accepted as aliases, and the
first that is set wins. Units are in the names. `docs/reference/settings.md` is held against this file by a test.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict, fields

MEBIBYTE_BYTES = 1024 * 1024
REDACTED = "…"
JWT_ALGORITHM = "HS256"
JWT_MINUTES_MAX = 24 * 60
SECRET_BYTES_MIN = 32


class SettingsError(ValueError):
    """The environment asks for something that cannot be."""


class Settings(Struct, frozen=True, kw_only=True):
    """Settings of one process.

    Attributes:
        data_dir: where embedded parts keep everything; also keys and the directory object store.
        database_url: a PostgreSQL 17+ with pgvector; empty means the embedded one.
        database_direct_url: the same database without a pooler between, for LISTEN and the projector.
        database_tcp_port: the embedded database listens on this port of 127.0.0.1 as well, with passwords: for
            analysts' tools; 0 is none.
        redis_url: a Valkey or Redis; empty means the embedded one.
        s3_endpoint_url: an S3 service; empty means the directory store under `data_dir`.
        base_url: how clients reach the API; signed URLs begin with it.
        sealing_key: base64 of the 32 bytes that wrap the keys of people; several by commas, the newest first; empty
            for a file of its own under `data_dir`.
        erasures_path: the list of who was erased; empty for a file under `data_dir`.
        secret_key: signs tokens, 32 bytes or more; several by commas, the newest first.
        trusted_proxies: networks (`10.1.2.3/32`) whose word on a client's address is taken.
        tls_cert, tls_key: PEM files; both, or neither.
        clamd_socket: of a ClamAV daemon that is asked about uploads too; empty for none.
        inference_tasks: tasks whose active versions are loaded at the start; /v2/health/ready says no before.
        inference_devices: CUDA's names of those that requests for inference run on, a process each; without any there
            is one process, with what it finds.
        inference_threads: cores that each of them may use.
        inference_models_max, inference_models_mb_max: that are loaded at once; the size of their files.
        inference_batch_rows_max, inference_request_mb_max: rows of one run; tensors of one run, and of one request.
        webhook_retry_scale: what the delays between attempts are multiplied by.
        webhook_concurrency_max, webhook_per_host_max: attempts at once, in all and to one host.
        webhook_failing_days_max: a webhook that took nothing for so long is disabled.
        webhook_networks: networks (`10.1.2.3/32`) that webhooks may reach although they are not public.
        webhook_plain_http: whether they may go to `http` URLs.
    """

    data_dir: Path = Path("var/sightline")
    database_url: str = ""
    database_direct_url: str = ""
    database_tcp_port: int = 0
    redis_url: str = ""

    s3_endpoint_url: str = ""
    s3_region: str = "us-east-1"
    s3_bucket: str = "sightline"
    s3_access_key_id: str = ""
    s3_secret_access_key: str = field(default="")

    sealing_key: str = ""
    erasures_path: str = ""

    host: str = "127.0.0.1"
    port: int = 8000
    base_url: str = ""
    cors_origins: list[str] = field(default_factory=list)
    auth_enabled: bool = False
    secret_key: str = ""
    jwt_algorithm: str = JWT_ALGORITHM  # and no other
    jwt_expire_minutes: int = 30
    rate_limits_enabled: bool | None = None  # None: where authentication is
    limit_sessions_per_minute: int = 20
    limit_upload_url_per_minute: int = 60
    limit_jobs_per_minute: int = 30
    limit_exports_per_minute: int = 60
    limit_login_per_minute: int = 10  # of one address; three times as many of one account
    limit_lots_per_minute: int = 100
    limit_lot_lists_per_minute: int = 200
    limit_trace_per_minute: int = 50
    trusted_proxies: list[str] = field(default_factory=list)
    tls_cert: str = ""
    tls_key: str = ""
    clamd_socket: str = ""
    log_format: str = "auto"  # auto | json | pretty; auto is pretty on a terminal
    log_level: str = "info"
    debug: bool = False

    upload_size_mb_max: int = 50
    upload_pixels_max: int = 64_000_000
    upload_url_expires_s: int = 900
    json_body_bytes_max: int = MEBIBYTE_BYTES
    live_streams_max: int = 10_000  # clients of one process that listen at once

    session_duration_s: int = 45 * 60
    job_timeout_s: int = 600
    job_attempts_max: int = 3
    job_retry_base_s: float = 1.0
    jobs_pending_max: int = 100_000  # per kind
    facade_jobs_pending_max: int = 100  # per kind, submitted through S3's paths
    worker_slots: int = 1
    worker_lease_s: float = 10.0
    worker_memory_mb_max: int = 4096
    analyst_query_s_max: float = 30.0  # how long a query or a transaction of an analyst may last
    analyst_connections_max: int = 3  # of each one that is made from now on
    objects_orphaned_after_s: int = 24 * 3600  # how old an object is before the janitor judges it
    webhook_timeout_s: float = 15.0
    webhook_retry_scale: float = 1.0
    webhook_concurrency_max: int = 50
    webhook_per_host_max: int = 5
    webhook_failing_days_max: float = 5.0
    webhook_networks: list[str] = field(default_factory=list)
    webhook_plain_http: bool = False
    inference_tasks: list[str] = field(default_factory=list)
    inference_devices: list[str] = field(default_factory=list)
    inference_threads: int = 1
    inference_cuda_graphs: bool = False
    inference_memory_mb_max: int = 4096
    inference_models_max: int = 4
    inference_models_mb_max: int = 2048
    inference_requests_max: int = 256  # that wait for one model
    inference_batch_rows_max: int = 32
    inference_request_mb_max: int = 8
    inference_timeout_s: float = 30.0
    default_num_layers: int = 4
    default_painterly_strength: float = 0.5
    default_painterly_seed: int = 42

    @property
    def upload_size_bytes_max(self) -> int:
        return self.upload_size_mb_max * MEBIBYTE_BYTES

    @property
    def public_url(self) -> str:
        """The base of every URL handed out, without a trailing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.base_url or f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}").rstrip("/")

    def redacted(self) -> dict[str, Any]:
        """For the log line at start: the same fields, secrets and passwords hidden."""
        shown = asdict(self)
        for name in shown:
            if ("secret" in name or name == "sealing_key") and shown[name]:
                shown[name] = REDACTED
            elif name.endswith("_url"):
                shown[name] = _without_password(shown[name])
        return {name: str(value) if isinstance(value, Path) else value for name, value in shown.items()}


# The names that the seeds' own documents use, and those that every tool of the field knows.
ALIASES: dict[str, tuple[str, ...]] = {
    "database_url": ("DATABASE_URL",),
    "database_direct_url": ("DATABASE_DIRECT_URL",),
    "redis_url": ("REDIS_URL",),
    "s3_endpoint_url": ("S3_ENDPOINT_URL", "S3_ENDPOINT"),
    "s3_region": ("S3_REGION", "AWS_REGION"),
    "s3_bucket": ("S3_BUCKET",),
    "s3_access_key_id": ("S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
    "s3_secret_access_key": ("S3_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
    "base_url": ("BACKEND_BASE_URL",),
    "cors_origins": ("CORS_ORIGINS",),
    "auth_enabled": ("AUTH_ENABLED",),
    "secret_key": ("SECRET_KEY",),
    "jwt_algorithm": ("JWT_ALGORITHM",),
    "jwt_expire_minutes": ("JWT_EXPIRE_MINUTES",),
    "rate_limits_enabled": ("RATE_LIMITS_ENABLED",),
    "debug": ("DEBUG",),
    "upload_size_mb_max": ("MAX_UPLOAD_SIZE_MB",),
    "worker_slots": ("MAX_CONCURRENT_JOBS",),
    "job_timeout_s": ("JOB_TIMEOUT_SECONDS",),
    "default_num_layers": ("DEFAULT_NUM_LAYERS",),
    "default_painterly_strength": ("DEFAULT_PAINTERLY_STRENGTH",),
    "default_painterly_seed": ("DEFAULT_PAINTERLY_SEED",),
}


def read(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Settings from `environ`; `overrides` (from the command line) win.

    Raises:
        SettingsError: a value does not fit its type, or a URL names a database that cannot be the event store.
    """
    found: dict[str, Any] = {}
    for spec in fields(Settings):
        for name in (f"SIGHTLINE_{spec.name.upper()}", *ALIASES.get(spec.name, ())):
            if environ.get(name):
                found[spec.name] = _parse(name, environ[name], spec.type)
                break
    found |= {name: value for name, value in overrides.items() if value is not None}
    for name in ("database_url", "database_direct_url"):
        if name in found:
            found[name] = _postgres_url(found[name])
    return Settings(**found)


def require_loopback(host: str) -> None:
    """Without authentication only this machine may ask.

    Raises:
        SettingsError: others could.
    """
    if not is_loopback(host):
        raise SettingsError(f"authentication is off, so the API listens on 127.0.0.1 only, not on {host!r}")


def is_loopback(host: str) -> bool:
    """Whether whoever listens there is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_door(settings: Settings) -> None:
    """Who may reach the door: with authentication everybody, without it this machine alone.

    Raises:
        SettingsError: others could without it; or it is on, and nothing safe is there to sign tokens with.
    """
    if settings.jwt_algorithm != JWT_ALGORITHM:
        raise SettingsError(f"JWT_ALGORITHM is {JWT_ALGORITHM} and no other, not {settings.jwt_algorithm!r}")
    if not 1 <= settings.jwt_expire_minutes <= JWT_MINUTES_MAX:
        raise SettingsError(f"JWT_EXPIRE_MINUTES is 1 to {JWT_MINUTES_MAX}, not {settings.jwt_expire_minutes}")
    secrets = secrets_of(settings)
    for number, secret in enumerate(secrets, 1):
        if len(secret.encode(errors="surrogateescape")) < SECRET_BYTES_MIN:
            raise SettingsError(f"SECRET_KEY has at least {SECRET_BYTES_MIN} bytes; number {number} has fewer")
    if not settings.auth_enabled:
        require_loopback(settings.host)
    elif not secrets:
        raise SettingsError(f"AUTH_ENABLED needs a SECRET_KEY of at least {SECRET_BYTES_MIN} random bytes")


def secrets_of(settings: Settings) -> list[str]:
    """The secrets that tokens are verified with; the first one signs."""
    return [secret.strip() for secret in settings.secret_key.split(",")] if settings.secret_key else []


def _parse(name: str, text: str, kind: Any) -> Any:
    value: Any = text
    if kind == list[str]:
        value = msgspec.json.decode(text) if text.lstrip().startswith("[") else [one.strip() for one in text.split(",")]
    elif kind is bool:
        value = text.strip().lower()
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=lambda wanted, given: wanted(given))
    except msgspec.ValidationError as error:
        raise SettingsError(f"{name}={text!r}: {error}") from error


def _postgres_url(url: str) -> str:
    """`url` as psycopg reads it: SQLAlchemy's driver suffix (`+asyncpg`, `+psycopg`) is dropped."""
    scheme, separator, rest = url.partition("://")
    if scheme.startswith("sqlite"):
        raise SettingsError(
            "DATABASE_URL names SQLite; the event store needs PostgreSQL. Unset it to use the embedded one."
        )
    return f"{scheme.partition('+')[0]}{separator}{rest}" if separator else url


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    user_part, at, host_part = rest.rpartition("@")
    if not at or ":" not in user_part:
        return url
    return f"{scheme}{separator}{user_part.partition(':')[0]}:{REDACTED}@{host_part}"
