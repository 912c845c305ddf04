"""Running the machine: so many steps, in rounds of examples, each round from a seed of its own."""

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.model.machine import Machine, Tally
from tests.model.real import Real

EXAMPLES_PER_ROUND = 20  # a round's memory of what it tried goes with it
RULES_PER_EXAMPLE = 30


def conform(
    real: Real,
    *,
    steps: int,
    first_seed: int = 0,
    shrink: bool = True,
    tally: Tally | None = None,
    told: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """At least `steps` commands on both sides; `told` hears after each round.

    Raises:
        AssertionError: the two sides differ; Hypothesis prints the smallest program that it found.
    """
    done = tally or Tally()
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    number = first_seed
    while done.steps < steps:
        machine = seed(number)(lambda: Machine(real, done))
        run_state_machine_as_test(
            machine,  # type: ignore[arg-type]  # documented: a class, or a function that returns an instance
            settings=settings(
                max_examples=EXAMPLES_PER_ROUND,
                stateful_step_count=RULES_PER_EXAMPLE,
                deadline=None,
                database=None,
                phases=phases,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
        told(done)
        number += 1
    return done
