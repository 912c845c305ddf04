"""`make fuzz`: as many requests as are asked for, at a service of its own.

python -m tests.fuzz --cases 10000 --seed 1
"""

import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tests.conftest_log import database
from tests.fuzz.run import Tally, fuzz
from tests.fuzz.service import running

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer


@click.command()
@click.option("--cases", default=10_000, show_default=True, help="Requests to send, at least.")
@click.option("--seed", default=0, show_default=True, help="Of the first round; each further round takes the next.")
@click.option("--auth/--no-auth", default=True, show_default=True, help="As an administrator, or nobody asked who.")
def main(cases: int, seed: int, *, auth: bool) -> None:
    """Send what the OpenAPI document allows, and what it forbids; exit 1 if any check finds anything."""
    console, began = Console(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}/{task.total:,}"))
    with (
        tempfile.TemporaryDirectory(prefix="sightline-fuzz-") as directory,
        PostgresServer(Path(directory)) as server,
        ValkeyServer(Path(directory)) as valkey,
        database(server, "fuzz", "template1") as log,
    ):
        postgres.migrate(log.dsn)
        with (
            running(log.dsn, valkey.url, Path(directory), authenticated=auth) as service,
            Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        ):
            bar = progress.add_task("requests", total=cases)
            tally = fuzz(
                service.url,
                cases=cases,
                seed=seed,
                api_key=service.api_key,
                spared=service.spared,
                told=lambda done: progress.update(bar, completed=min(done.cases, cases)),
            )
            trouble = service.trouble()
    report(console, tally, time.monotonic() - began)
    for line in trouble:
        console.print("the log says:", line, markup=False)
    sys.exit(bool(tally.failures or tally.errors))


def report(console: Console, tally: Tally, took_s: float) -> None:
    table = Table(title="Requests by operation")
    for name in ("operation", "cases", "statuses", "failures"):
        table.add_column(name, justify="right" if name == "cases" else "left")
    for operation, counted in sorted(tally.statuses.items()):
        statuses = " ".join(f"{status}×{count}" for status, count in sorted(counted.items()))
        failed = " ".join(f"{check}×{n}" for (name, check), n in sorted(tally.failed.items()) if name == operation)
        table.add_row(operation, f"{counted.total():,}", statuses, failed)
    console.print(table)
    for failure in tally.failures.values():
        console.print(f"[bold]{failure.operation}: {failure.check}[/]", failure.title, sep="\n")
        console.print(failure.message[:2_000], failure.request, failure.answer, "", sep="\n", markup=False)
    console.print("never succeeded:", ", ".join(sorted(tally.never_succeeded)) or "nothing")
    for error in tally.errors:
        console.print(f"could not be tried: {error}", markup=False)
    for (operation, code), n in sorted(tally.server_errors.items()):
        console.print(f"5xx: {operation}: {code} ×{n}")
    console.print("checks passed or failed:", ", ".join(f"{name} {n:,}" for name, n in sorted(tally.checks.items())))
    console.print(
        f"{tally.cases:,} requests, {tally.server_errors.total()} answers of 5xx, {sum(tally.failed.values())} findings"
        f" of {len(tally.failures)} kinds, {len(tally.errors)} errors; {tally.cases / took_s:,.0f} requests/s"
    )


if __name__ == "__main__":
    main()
