"""`make bench`: every benchmark, or those that are named."""

from typing import Protocol

import click

from . import (
    audit_offline,
    library_face,
    notary_cost,
    p1_append,
    p2_submit,
    p3_jobs,
    p4_rest,
    p5_catch_up,
    p6_inference,
    p8_lag,
    p9_growth,
    restore,
)


class Benchmark(Protocol):
    def __call__(self, *, rounds: int, seconds: float) -> None: ...


BENCHMARKS: dict[str, Benchmark] = {
    "bundle": audit_offline.run,
    "library": library_face.run,
    "notary": notary_cost.run,
    "p1": p1_append.run,
    "p2": p2_submit.run,
    "p3": p3_jobs.run,
    "p4": p4_rest.run,
    "p5": p5_catch_up.run,
    "p6": p6_inference.run,
    "p8": p8_lag.run,
    "p9": p9_growth.run,
    "restore": restore.run,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(BENCHMARKS)))
@click.option("--rounds", default=5, show_default=True, help="How often each figure is taken, in turn.")
@click.option("--seconds", default=2.0, show_default=True, help="How long each taking lasts.")
def main(names: tuple[str, ...], rounds: int, seconds: float) -> None:
    """Run the benchmarks and leave tables and plots in benchmarks/results."""
    for name in names or sorted(BENCHMARKS):
        BENCHMARKS[name](rounds=rounds, seconds=seconds)


if __name__ == "__main__":
    main()
