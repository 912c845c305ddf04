"""Which failures are worth another attempt, and how long that one waits: by what went wrong.

transient  gone by itself, most likely: soon again, each time twice as late
throttled  a part is busy or away, and asking soon makes that worse: later, and each time twice as late
permanent  the same job fails the same way: not again, whatever its kind says
"""

from collections.abc import Mapping
from typing import Literal

ErrorClass = Literal["transient", "throttled", "permanent"]

RETRY_DELAY_S_MAX = 300.0
THROTTLED_FACTOR = 5.0
DOUBLINGS_MAX = 30  # beyond it the longest delay rules anyway, and floats end somewhere

# Codes of failed attempts. One that is not here is transient where its kind wants it retried.
CLASSES: Mapping[str, ErrorClass] = {
    "worker_stopped": "transient",
    "worker_failed": "transient",
    "lease_expired": "transient",
    "crowded_out": "transient",
    "output_damaged": "transient",
    "runner_died": "transient",
    "model_missing": "throttled",
    "part_unavailable": "throttled",
    "out_of_memory": "permanent",
    "rule_violated": "permanent",
    "unknown_kind": "permanent",
    "result_refused": "permanent",
    "image_undecodable": "permanent",
    "image_too_many_pixels": "permanent",
    "timeout": "permanent",
}


def class_of(code: str) -> ErrorClass:
    return CLASSES.get(code, "transient")


def is_retried(code: str, *, retryable: bool) -> bool:
    """Whether an attempt that failed with `code` is made again: its kind says so, and it is nothing permanent."""
    return retryable and class_of(code) != "permanent"


def retry_delay_s(code: str, attempt: int, base_s: float, jitter: float) -> float:
    """How long to wait after `attempt` failed: base·2^(attempt-1), five times that where a part is busy; at most
    300 s; times `jitter` (0 to 1). A worker that was stopped did its job no harm: at once.
    """
    if code == "worker_stopped":
        return 0.0
    factor = THROTTLED_FACTOR if class_of(code) == "throttled" else 1.0
    doublings = min(attempt - 1, DOUBLINGS_MAX)
    return min(RETRY_DELAY_S_MAX, base_s * factor * 2.0**doublings) * jitter
