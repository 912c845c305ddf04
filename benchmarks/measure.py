"""What every benchmark shares: rounds in turn, medians with their spread, tables and plots."""

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"


class Cell(Struct, frozen=True):
    """One subject under one load, over all rounds; per second."""

    median: float
    low: float
    high: float

    @property
    def text(self) -> str:
        return f"{self.median:,.0f}  ({self.low:,.0f}–{self.high:,.0f})"


def in_turn(
    subjects: Mapping[str, Callable[[Any], float]], loads: Sequence[Any], *, rounds: int, title: str
) -> dict[str, dict[Any, Cell]]:
    """Measure every subject under every load, `rounds` times, in turn: a machine whose speed drifts drifts for all."""
    found: dict[str, dict[Any, list[float]]] = {name: {load: [] for load in loads} for name in subjects}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=rounds * len(loads) * len(subjects))
        for _ in range(rounds):
            for load in loads:
                for name, measure in subjects.items():
                    progress.update(task, description=f"{title}: {name}, {load}")
                    found[name][load].append(measure(load))
                    progress.advance(task)
    return {
        name: {load: Cell(statistics.median(each), min(each), max(each)) for load, each in by_load.items()}
        for name, by_load in found.items()
    }


def machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    )


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], name: str, notes: Sequence[str]) -> None:
    """A table on the terminal, and the same as Markdown under results/."""
    table = Table(title=title)
    for number, column in enumerate(header):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    lines = [f"# {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    for note in (*notes, f"Machine: {machine()}."):
        console.print(note)
        lines += ["", note]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


@contextmanager
def picture(name: str, *, size: tuple[float, float] = (7, 4.2), dpi: int = 130) -> Iterator["Axes"]:
    """Axes to draw on, `size` in inches; kept as results/NAME.png."""
    import matplotlib as mpl  # noqa: PLC0415  # half a second that only pictures need

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  # after use()

    figure, axes = plt.subplots(figsize=size, layout="constrained")
    yield axes
    figure.savefig(RESULTS / f"{name}.png", dpi=dpi)
    plt.close(figure)


def keep(name: str, cells: Mapping[str, Mapping[Any, Cell]]) -> None:
    """The figures themselves, for whoever compares two runs."""
    plain = {subject: {str(load): cell for load, cell in by_load.items()} for subject, by_load in cells.items()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(plain)) + b"\n")
