"""The switchboard: every process of Sightline is a command here, and so is every look into it.

All commands work on `--data-dir DIR` (embedded parts, started for the command where nothing runs there) or on the
servers that `DATABASE_URL`, `REDIS_URL` and `S3_ENDPOINT_URL` name.
"""

import http.client
import json
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast
from uuid import UUID

import click
import psycopg

from ..adapters import logs, postgres, settings, tls
from ..adapters.embedded.charges import ProcessSpec
from ..adapters.embedded.parts import Parts
from ..adapters.embedded.supervisor import Supervisor
from ..adapters.settings import Settings
from .shared import (
    clear_errors,
    data_dir_option,
    given_settings,
    migrated,
    parts,
    run_async,
    scalar,
    tls_options,
    with_services,
)

READY_PROBE_TIMEOUT_S = 1.0
NOTARY_NICENESS = 10  # whoever appends goes first; signing may take half a second longer

# Each by the module that it lies in.
GROUPS = {
    "analyst": "analytics",
    "analytics": "analytics",
    "audit": "audit",
    "backup": "backup",
    "keys": "keys",
    "models": "models",
    "people": "people",
    "projections": "projections",
    "restore": "backup",
    "users": "users",
}


class Switchboard(click.Group):
    """Commands of this file, and groups that are loaded when one is asked for: a process loads what it needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *GROUPS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in GROUPS:
            return super().get_command(ctx, cmd_name)
        found = getattr(import_module(f".{GROUPS[cmd_name]}", __package__), cmd_name)
        return cast("click.Command", found)


@click.group(cls=Switchboard, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sightline")
def main() -> None:
    """Sightline: every step is an event."""


@main.command()
@data_dir_option
@click.option("--host", help="Where the API listens.")
@click.option("--port", type=click.IntRange(1, 65535), help="Where the API listens.")
@tls_options
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
def up(
    data_dir: Path | None, host: str | None, port: int | None, tls_cert: str | None, tls_key: str | None, workers: int
) -> None:
    """Start everything: parts, migrations, API, projector, workers and clock, and keep them running."""
    given = given_settings(data_dir=data_dir, host=host, port=port, tls_cert=tls_cert, tls_key=tls_key)
    with clear_errors():
        settings.require_door(given)
        tls.require_private_wire(given)
        tls.load_context(given)
    logs.configure(given)

    def plan(ready: Settings) -> Sequence[ProcessSpec]:
        postgres.migrate(ready.database_direct_url or ready.database_url)
        listen = ["--host", ready.host, "--port", str(ready.port)]
        if ready.tls_cert:
            listen += [
                "--tls-cert",
                str(Path(ready.tls_cert).absolute()),
                "--tls-key",
                str(Path(ready.tls_key).absolute()),
            ]
        return [
            _process("projector", "project"),
            _process("clock", "tick"),
            _process("notary", "notarize"),
            _process("webhooks", "deliver"),
            _process("api", "serve", *listen, ready=lambda: _answers(ready)),
            *(_process(f"worker-{number}", "work") for number in range(1, workers + 1)),
        ]

    def on_ready() -> None:
        click.echo(f"Sightline is ready: {given.public_url}  (docs: {given.public_url}/docs)", err=True)

    with clear_errors():
        sys.exit(Supervisor(Parts(given, attach=False), plan, on_ready=on_ready).run())


@main.command()
@data_dir_option
@click.option("--host", help="Where the API listens.")
@click.option("--port", type=click.IntRange(1, 65535), help="Where the API listens.")
@tls_options
def serve(data_dir: Path | None, host: str | None, port: int | None, tls_cert: str | None, tls_key: str | None) -> None:
    """Run the API alone."""
    from ..http import server  # noqa: PLC0415  # each process loads only its own floor

    with parts(data_dir=data_dir, host=host, port=port, tls_cert=tls_cert, tls_key=tls_key) as ready:
        server.serve(ready)


@main.command()
@data_dir_option
def project(data_dir: Path | None) -> None:
    """Run the projector alone."""
    from ..workers import lifecycle, projector  # noqa: PLC0415  # as above

    with parts(data_dir=data_dir) as ready:
        run_async(lifecycle.run_until_stopped(lambda stopping: projector.run(ready, stopping), "projector"))


@main.command()
@data_dir_option
def work(data_dir: Path | None) -> None:
    """Run one worker alone."""
    from ..workers import inference  # noqa: PLC0415  # as above

    with parts(data_dir=data_dir) as ready:
        run_async(with_services(ready, inference.run, "worker"))


@main.command()
@data_dir_option
def tick(data_dir: Path | None) -> None:
    """Run the clock alone: expiry, leases, timeouts, refill of hints."""
    from ..workers import clock  # noqa: PLC0415  # as above

    with parts(data_dir=data_dir) as ready:
        run_async(with_services(ready, clock.run, "clock"))


@main.command()
@data_dir_option
def notarize(data_dir: Path | None) -> None:
    """Run the notary alone: it signs what the log was, so that nobody can change it unseen."""
    from ..workers import lifecycle, notary  # noqa: PLC0415  # as above

    with parts(data_dir=data_dir) as ready:
        os.nice(NOTARY_NICENESS)  # now, not before: parts that were started for this are not to be nice
        run_async(lifecycle.run_until_stopped(lambda stopping: notary.run(ready, stopping), "notary"))


@main.command()
@data_dir_option
def deliver(data_dir: Path | None) -> None:
    """Run the deliverer of webhooks alone."""
    from ..workers import webhooks  # noqa: PLC0415  # as above

    with parts(data_dir=data_dir) as ready:
        run_async(with_services(ready, webhooks.run, "webhooks"))


@main.command()
@data_dir_option
@click.option("--revision", default="head", show_default=True, help="Where to go; a migration's id, or head.")
def migrate(data_dir: Path | None, revision: str) -> None:
    """Bring the database's schema up to date."""
    with parts(data_dir=data_dir) as ready:
        postgres.migrate(ready.database_direct_url or ready.database_url, revision)
        click.echo(f"The schema is at {revision}.")


@main.command()
@data_dir_option
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="Positions past this one.")
@click.option("--limit", type=click.IntRange(1), help="At most so many; all without it.")
@click.option("--stream", type=click.UUID, help="One stream's events alone.")
def events(data_dir: Path | None, after: int, limit: int | None, stream: UUID | None) -> None:
    """Print the log, one JSON object per line."""
    with parts(data_dir=data_dir) as ready, psycopg.connect(ready.database_url) as connection:
        migrated(connection)
        with connection.cursor(name="events") as cursor:
            cursor.execute(
                "SELECT json_build_object('position', position, 'stream_id', stream_id, 'version', version,"
                " 'type', topic, 'recorded_at', recorded_at, 'metadata', metadata, 'data', data)::text FROM events"
                " WHERE position > %(after)s AND (%(stream)s::uuid IS NULL OR stream_id = %(stream)s)"
                " ORDER BY position LIMIT %(limit)s",
                {"after": after, "stream": stream, "limit": limit},
            )
            for (line,) in cursor:
                click.echo(line)


@main.command()
@data_dir_option
def status(data_dir: Path | None) -> None:
    """How long the log is, how far the read models are, and how many jobs are in which state."""
    with parts(data_dir=data_dir) as ready, psycopg.connect(ready.database_url) as connection:
        migrated(connection)
        head = scalar(connection, "SELECT coalesce(max(position), 0) FROM events")
        read = scalar(connection, "SELECT position FROM projection_checkpoints WHERE name = 'read_models'")
        found = connection.execute("SELECT kind, status, count(*) FROM jobs GROUP BY kind, status").fetchall()
        jobs = [{"kind": kind, "status": state, "jobs": count} for kind, state, count in found]
        click.echo(json.dumps({"position": head, "projected": read, "lag": head - read, "jobs": jobs}, indent=2))


@main.command(context_settings={"ignore_unknown_options": True})
@data_dir_option
@click.option("--as-analyst", metavar="NAME", help="Log in as this analyst; all that the session may do is read.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql(data_dir: Path | None, as_analyst: str | None, arguments: tuple[str, ...]) -> None:
    """Open psql on the database; further arguments are psql's own."""
    import subprocess  # noqa: PLC0415  # for this command alone

    from ..adapters.embedded.binaries import psql_path  # noqa: PLC0415  # as above

    with parts(data_dir=data_dir) as ready:
        url = ready.database_url
        if as_analyst is not None:
            from .analytics import analyst_url  # noqa: PLC0415  # as above

            url = analyst_url(ready, as_analyst)
        sys.exit(subprocess.run([psql_path(), url, *arguments], check=False).returncode)


def _process(name: str, *command: str, ready: Callable[[], bool] | None = None) -> ProcessSpec:
    return ProcessSpec(name=name, argv=(sys.executable, "-m", "sightline", *command), ready=ready)


def _answers(ready: Settings) -> bool:
    """Whether the API says that it is ready."""
    connection = http.client.HTTPConnection(ready.host, ready.port, timeout=READY_PROBE_TIMEOUT_S)
    if ready.tls_cert:
        context = ssl.create_default_context()
        context.check_hostname = False  # we started it, and ask nothing secret: whose certificate it is does not matter
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(ready.host, ready.port, timeout=READY_PROBE_TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    finally:
        connection.close()
