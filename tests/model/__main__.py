"""`make conform`: as many steps as are asked for, on servers of its own.

python -m tests.model --steps 500000 --seed 1
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

import click
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tests.conftest_log import database
from tests.model.machine import Tally
from tests.model.real import open_real
from tests.model.run import conform

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer


@click.command()
@click.option("--steps", default=500_000, show_default=True, help="Commands to execute on both sides, at least.")
@click.option("--seed", default=0, show_default=True, help="Of the first round; each further round takes the next.")
def main(steps: int, seed: int) -> None:
    """Drive the commands and the reference model side by side; exit 1 and the smallest program where they differ."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    tally, began = Tally(), time.monotonic()
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}/{task.total:,}"))
    with (
        tempfile.TemporaryDirectory(prefix="sightline-conform-") as directory,
        PostgresServer(Path(directory)) as server,
        ValkeyServer(Path(directory)) as valkey,
        database(server, "conform", "template1") as log,
    ):
        postgres.migrate(log.dsn)
        with (
            open_real(log.dsn, valkey.url, Path(directory) / "service") as real,
            Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress,
        ):
            bar = progress.add_task("steps", total=steps)
            failed = False
            try:
                conform(
                    real,
                    steps=steps,
                    first_seed=seed,
                    tally=tally,
                    told=lambda done: progress.update(bar, completed=done.steps),
                )
            except Exception as error:  # noqa: BLE001  # whatever it is, the program that led to it is what is wanted
                failed = True
                progress.stop()
                print(error, *getattr(error, "__notes__", ()), f"As it was seen first: {tally.failure}", sep="\n")
    report(console, tally, time.monotonic() - began, failures=int(failed))
    sys.exit(int(failed))


def report(console: Console, tally: Tally, took_s: float, *, failures: int) -> None:
    table = Table(title="Model conformance")
    table.add_column("command")
    table.add_column("granted", justify="right")
    for verb, count in sorted(tally.done.items()):
        table.add_row(verb, f"{count:,}")
    table.add_section()
    for code, count in sorted(tally.refused.items()):
        table.add_row(f"refused: {code}", f"{count:,}")
    console.print(table)
    console.print(
        f"{tally.steps:,} steps, {tally.met:,} of them beside others on one stream, {tally.repeats:,} repeats, "
        f"{tally.comparisons:,} comparisons of log, read models and counters; {tally.steps / took_s:,.0f} steps/s; "
        f"failures: {failures}"
    )


if __name__ == "__main__":
    main()
