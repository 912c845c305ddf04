"""`python -m tests.adapters.hostile`: pictures and models changed at random, for as long as you like, from a seed."""

import asyncio
import logging
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import structlog
from tests.adapters.hostile.case import Case, case
from tests.adapters.hostile.fuzz import edits_of, mutated, mutated_model, seeds
from tests.adapters.hostile.models import DIED, TIME
from tests.adapters.hostile.run import (
    MODEL_MEMORY_BYTES_MAX,
    PICTURE_MEMORY_BYTES_MAX,
    PIXELS_MAX,
    Told,
    loaded,
    scanned,
)

from sightline.adapters.images import ImageScanner
from sightline.workers.runner_client import Runner

MODELS_SHARE = 0.3
MODEL_S_MAX = 5.0
PICTURE_S_MAX = 10.0
KEPT_MAX = 100


@click.command()
@click.option("--seconds", type=click.IntRange(1, 7 * 86_400), default=60, help="How long.")
@click.option("--seed", type=int, help="Of all changes; one is drawn, and printed, without it.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave files that killed a child there.")
def main(seconds: int, seed: int | None, keep: Path | None) -> None:
    """Show changed files to the real children. Exit 1 if a worker's end failed, or a child passed its memory."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    chosen = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    click.echo(f"seed {chosen}, {seconds} s (again: --seed {chosen})")
    codes, bad = asyncio.run(_run(random.Random(chosen), seconds, keep))
    for code, count in codes.most_common():
        click.echo(f"{count:8,} {code or 'clean'}")
    if bad:
        raise click.ClickException(f"{len(bad)} broke a promise: {', '.join(bad[:KEPT_MAX])}")


async def _run(chance: random.Random, seconds: int, keep: Path | None) -> tuple[Counter[str], list[str]]:
    codes: Counter[str] = Counter()
    bad: list[str] = []
    pictures = seeds()
    until = time.monotonic() + seconds
    runner = Runner(memory_bytes_max=MODEL_MEMORY_BYTES_MAX)
    with tempfile.TemporaryDirectory(prefix="sightline-hostile-") as temporary:
        directory = Path(temporary)
        async with ImageScanner(
            pixels_max=PIXELS_MAX, timeout_s=PICTURE_S_MAX, memory_bytes_max=PICTURE_MEMORY_BYTES_MAX, concurrency=1
        ) as scanner:
            number = 0
            while time.monotonic() < until:
                number += 1
                if chance.random() < MODELS_SHARE:
                    one = case(f"model-{number}", mutated_model(chance), "")
                    told = await loaded(runner, one, directory, MODEL_S_MAX)
                    limit = MODEL_MEMORY_BYTES_MAX
                else:
                    declared, content = chance.choice(pictures)
                    one = case(f"picture-{number}", mutated(content, edits_of(chance)), declared)
                    told = await scanned(scanner, one, directory)
                    limit = PICTURE_MEMORY_BYTES_MAX
                codes[told.code] += 1
                if told.peak_bytes > limit or told.code == "internal_error":
                    bad.append(one.name)
                _keep(keep, one, told, sum(codes.values()))
        await runner.close()
    return codes, bad


def _keep(keep: Path | None, one: Case, told: Told, number: int) -> None:
    if keep is not None and number < KEPT_MAX and (told.code in {DIED, TIME} or "died" in told.detail):
        keep.mkdir(parents=True, exist_ok=True)
        (keep / one.name).write_bytes(one.content)


if __name__ == "__main__":
    main()
