"""`python -m tests.crash`: the long run, replayable by its seed."""

import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path

import click
import msgspec
import structlog
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tests.crash import harness
from tests.crash.plan import LONG, SHORT, Plan, plan


@click.command()
@click.option("--seed", type=int, help="Of loads and faults; one is drawn, and printed, without it.")
@click.option("--kills", type=click.IntRange(1, 10_000), help="How many processes are killed by -9.")
@click.option("--events", type=click.IntRange(1_000, 100_000_000), help="What the bulk appenders bring.")
@click.option("--short", is_flag=True, help="The sizes of the run inside `make test`.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave data, logs and ledgers there.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="The rows as JSON.")
@click.option("--show-plan", is_flag=True, help="Print the rounds and do nothing.")
def main(
    seed: int | None,
    kills: int | None,
    events: int | None,
    short: bool,
    keep: Path | None,
    report: Path | None,
    show_plan: bool,
) -> None:
    """Load a real service, kill its parts again and again, then check every promise. Exit 1 if one is broken."""
    size = SHORT if short else LONG
    size = replace(size, kills=kills or size.kills, events=events or size.events)
    wanted = plan(seed if seed is not None else random.SystemRandom().randrange(1_000_000), size)
    console = Console()
    console.print(f"seed {wanted.seed}: {size.kills} kills, {size.events:,} events (again: --seed {wanted.seed})")
    if show_plan:
        console.print("\n".join(wanted.lines), highlight=False)
        return
    with tempfile.TemporaryDirectory(prefix="sightline-crash-") as temporary:
        directory = (keep or Path(temporary)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise click.ClickException(
                f"{directory} is not empty: the ledgers of another run would be taken for this one's"
            )
        # The run's own log beside those of its processes: a terminal has the bar.
        with (directory / "harness.log").open("a", encoding="utf-8") as log:
            structlog.configure(logger_factory=structlog.WriteLoggerFactory(log))
            found = _run(wanted, directory, console)
    show(found, console)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    sys.exit(bool(found.broken))


def _run(wanted: Plan, directory: Path, console: Console) -> harness.Report:
    columns = (TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=wanted.size.kills)

        def told(progress: harness.Progress) -> None:
            bar.update(task, completed=progress.rounds, description=f"{progress.commands:,} commands; {progress.doing}")

        try:
            return asyncio.run(harness.run(wanted, directory, told))
        except harness.Stuck as stuck:
            raise click.ClickException(f"seed {wanted.seed}: {stuck}") from stuck


def show(found: harness.Report, console: Console) -> None:
    table = Table("", "promise", "broken", "figure", title=f"seed {found.seed}, {found.seconds:.0f} s")
    for row in found.rows:
        table.add_row(row.promise, row.what, f"[{'red' if row.broken else 'green'}]{row.broken}", row.figure)
    for name, figure in found.recovery():
        table.add_row("R6", f"recovery of {name}", "", figure)
    console.print(table)
    console.print("killed: " + ", ".join(f"{name} {count}" for name, count in sorted(found.kills.items())))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[2]))
    main()
