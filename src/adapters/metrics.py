"""Every metric there is, in one place; `docs/reference/metrics.md` is held against this file by a test.

Names are an API: they stay when the code behind them moves.
"""

from prometheus_client import Counter, Gauge, Histogram

LOG_POSITION = Gauge("sightline_log_position", "Position of the last event that this process appended.")
APPEND_SECONDS = Histogram(
    "sightline_append_seconds",
    "Seconds of one append_batch call, commit included.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
APPEND_BATCH_EVENTS = Histogram(
    "sightline_append_batch_events", "Events per batch.", buckets=(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
APPEND_RESENDS = Counter("sightline_append_resends_total", "Batches sent again after a lost connection.")
DECISIONS_REPEATED = Counter(
    "sightline_decisions_repeated_total", "Decisions made again because a stream had moved meanwhile."
)
PROJECTED_POSITION = Gauge("sightline_projected_position", "Position that the read models reflect.")
PROJECTION_FAILURES = Counter("sightline_projection_failures_total", "Pages that could not be projected; an alarm.")
PROJECTION_QUARANTINED = Gauge(
    "sightline_projection_quarantined_streams", "Streams that are in no read model any more, up to 1,000; an alarm."
)
OBJECTS_ORPHANED = Counter("sightline_objects_orphaned_total", "Objects removed because no event names them.")
ANALYST_QUERIES_ENDED = Counter(
    "sightline_analyst_queries_ended_total",
    "Queries and sessions of analysts that took too long; `unwatched` are those that this login may not end.",
    ["how"],
)
NOTARISED_POSITION = Gauge("sightline_notarised_position", "Position up to which the log is signed.")
NOTARY_REFUSALS = Counter(
    "sightline_notary_refusals_total", "Times that the log contradicted what was signed, so that nothing was; an alarm."
)
JOB_SECONDS = Histogram(
    "sightline_job_seconds",
    "Seconds from the claim of a job to the end of its attempt.",
    ["kind"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
HTTP_SECONDS = Histogram(
    "sightline_http_request_seconds",
    "Seconds from a request's first byte to its answer's last, by the route's template.",
    ("route", "method", "status"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
HTTP_IN_FLIGHT = Gauge("sightline_http_requests_in_flight", "Requests that are being answered.")
