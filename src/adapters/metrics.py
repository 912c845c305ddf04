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
PROJECTION_LAG = Gauge("sightline_projection_lag_events", "Events that the read models do not reflect yet.")
JOBS_WAITING = Gauge("sightline_jobs_waiting", "Jobs that could start now.", ["kind"])
JOBS_RUNNING = Gauge("sightline_jobs_running", "Jobs that a worker holds.", ["kind"])
JOBS_OLDEST_SECONDS = Gauge(
    "sightline_jobs_oldest_waiting_seconds",
    "For how long the job that has waited longest could have started.",
    ["kind"],
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
WEBHOOK_POSITION = Gauge("sightline_webhook_position", "Position up to which it is noted who is to be told.")
WEBHOOK_ATTEMPTS = Counter(
    "sightline_webhook_attempts_total",
    "Attempts to deliver a message: `delivered`, `retried` (there will be another), `failed` (it was the last).",
    ["outcome"],
)
JOB_SECONDS = Histogram(
    "sightline_job_seconds",
    "Seconds from the claim of a job to the end of its attempt.",
    ["kind"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
INFERENCE_REQUESTS = Counter(
    "sightline_inference_requests_total", "Requests for inference by what became of them.", ["model", "result"]
)
_INFERENCE_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
INFERENCE_QUEUE_SECONDS = Histogram(
    "sightline_inference_queue_seconds",
    "Seconds from a request's arrival until it was sent to a device.",
    ["model"],
    buckets=_INFERENCE_BUCKETS,
)
INFERENCE_INPUT_SECONDS = Histogram(
    "sightline_inference_input_seconds", "Seconds to make a batch's arrays.", ["model"], buckets=_INFERENCE_BUCKETS
)
INFERENCE_INFER_SECONDS = Histogram(
    "sightline_inference_infer_seconds", "Seconds of a batch in the runtime.", ["model"], buckets=_INFERENCE_BUCKETS
)
INFERENCE_OUTPUT_SECONDS = Histogram(
    "sightline_inference_output_seconds", "Seconds to take a batch's outputs.", ["model"], buckets=_INFERENCE_BUCKETS
)
INFERENCE_BATCH_ROWS = Histogram(
    "sightline_inference_batch_rows", "Rows per batch.", ["model"], buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
HTTP_SECONDS = Histogram(
    "sightline_http_request_seconds",
    "Seconds from a request's first byte to its answer's last, by the route's template.",
    ("route", "method", "status"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
LIVE_STREAMS = Gauge("sightline_live_streams", "Clients that listen to jobs.", ["transport"])
LIVE_FRAMES = Counter("sightline_live_frames_total", "Frames sent to clients that listen.")
LIVE_ENDED = Counter("sightline_live_ended_total", "Streams that ended, by why.", ["reason"])
HTTP_IN_FLIGHT = Gauge("sightline_http_requests_in_flight", "Requests that are being answered.")
