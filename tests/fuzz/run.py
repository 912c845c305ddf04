"""Requests that the OpenAPI document allows, and such as it does not, sent to a service that runs; and what was found.

A run is made of rounds. The first takes the document's examples, its bounds one by one, and chains of requests along
its links; those that follow draw at random again, each with a seed of its own. Which checks run, and where one is
told that it is wrong about us, is in checks.toml and excused.py.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import schemathesis
from hypothesis.strategies import sampled_from
from msgspec import Struct, field
from schemathesis import Case, HookContext
from schemathesis.engine import Status, events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from tests.fuzz.excused import code_of
from tests.http.door import picture

CHECKS = Path(__file__).with_name("checks.toml")
BOUNDS = ("examples", "coverage")
RANDOM = ("fuzzing", "stateful")
ROUNDS_MAX = 1_000  # a service that answers nothing makes no cases
EXAMPLES_EACH_MAX = 200  # of one operation, in one round
SHOWN_CHARS_MAX = 2_000
SPARED: set[str] = set()
KEPT = re.compile("[!-~]{1,255}")


class Failure(Struct, frozen=True):
    """What one check found wrong with one operation, and the request that shows it."""

    operation: str
    check: str
    title: str
    message: str
    request: str
    answer: str


class Tally(Struct):
    """Attributes:
    statuses: how often each was answered, by operation.
    failures: one of each kind; the same again is only counted.
    errors: of the harness itself: an operation that could not be tried is not one that passed.
    """

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    checks: Counter[str] = field(default_factory=Counter)
    failures: dict[tuple[str, str, str], Failure] = field(default_factory=dict)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    server_errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(counted.total() for counted in self.statuses.values())

    @property
    def never_succeeded(self) -> set[str]:
        """Operations that only ever refused: of those not much was seen."""
        return {name for name, counted in self.statuses.items() if not any(200 <= one < 400 for one in counted)}

    def record(self, recorder: ScenarioRecorder) -> None:
        for case_id, interaction in recorder.interactions.items():
            operation = recorder.cases[case_id].value.operation.label if case_id in recorder.cases else recorder.label
            counted = self.statuses.setdefault(operation, Counter())
            response = interaction.response
            counted[0 if response is None else response.status_code] += 1
            if response is not None and response.status_code >= 500:
                self.server_errors[operation, code_of(response)] += 1
        for case_id, nodes in recorder.checks.items():
            operation = recorder.cases[case_id].value.operation.label
            for node in nodes:
                self.checks[node.name] += 1
                if node.failure_info is None:
                    continue
                found = node.failure_info.failure
                response = recorder.find_response(case_id=found.case_id or case_id)
                answer = "" if response is None else f"{response.status_code} {response.text[:SHOWN_CHARS_MAX]}"
                self.failed[operation, node.name] += 1
                self.failures.setdefault(
                    (operation, node.name, found.title),
                    Failure(operation, node.name, found.title, found.message, node.failure_info.code_sample, answer),
                )


@schemathesis.hook
def before_call(_context: HookContext, case: "Case[Any]", _kwargs: Any) -> None:
    """What would make every answer the same refusal, for a reason that no schema can say:

    An idempotency key that another request had is refused, so that each request gets one of its own. The document's
    pattern of If-Match is not followed where bounds are tried one by one: words are put into the quotes that they lack.
    And 107.0, which is an integer to JSON Schema, is none to us. Whoever the run acts for is not deactivated.
    """
    for name, value in (case.path_parameters or {}).items():
        if any(one in str(value) for one in SPARED):
            case.path_parameters[name] = str(uuid4())
    headers: Any = case.headers or {}
    key, tag = headers.get("Idempotency-Key"), headers.get("If-Match")
    if isinstance(key, str) and KEPT.fullmatch(key):
        headers["Idempotency-Key"] = f"{key[:200]}-{uuid4()}"
    if case.meta is not None and case.meta.generation.mode.is_positive:
        if isinstance(tag, str) and tag.isalnum():
            headers["If-Match"] = f'"{tag}"'
        case.body = _whole(case.body)


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_whole(one) for one in value]
        case dict():
            return {name: _whole(one) for name, one in value.items()}
    return value


def _is_endless(context: Any) -> bool:
    """Whether the answer goes on for as long as somebody listens: nobody could wait for its end."""
    return "text/event-stream" in str(context.operation.definition.raw["responses"])


def take_pictures() -> None:
    """Uploads are pictures of the type that they are declared to be, or else nothing past the first look is tried."""
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        schemathesis.openapi.media_type(f"image/{kind.lower()}", sampled_from([picture((8, 8), kind)]))


def fuzz(
    url: str,
    *,
    cases: int,
    seed: int,
    api_key: str | None = None,
    spared: Iterable[str] = (),
    bounds: bool = True,
    told: Callable[[Tally], Any] = lambda _: None,
) -> Tally:
    """Send at least so many requests to the service at `url`, and say what its answers were.

    Args:
        url: of the service.
        cases: how many.
        seed: of the first round; each further round takes the next.
        api_key: of whoever asks.
        spared: ids that no path may name.
        bounds: begin with the document's examples and every bound that it names, one by one: forty requests for each
            operation, whatever `cases` says.
        told: called now and then with what was found so far.
    """
    SPARED.clear()
    SPARED.update(spared)
    take_pictures()
    tally = Tally()
    for number in range(ROUNDS_MAX):
        if tally.cases >= cases:
            break
        left = cases - tally.cases
        phases = [*(BOUNDS if bounds and number == 0 else ()), *RANDOM]
        _round(url, tally, phases, seed=seed + number, left=left, api_key=api_key, told=told)
        if tally.errors:
            break
    return tally


def _round(
    url: str,
    tally: Tally,
    phases: list[str],
    *,
    seed: int,
    left: int,
    api_key: str | None,
    told: Callable[[Tally], Any],
) -> None:
    given = tomllib.loads(CHECKS.read_text()) | {"seed": seed}
    if api_key is not None:
        given["auth"] |= {"openapi": {"key": {"api_key": api_key}}}
    whole = schemathesis.openapi.from_url(f"{url}/openapi.json", config=schemathesis.Config.from_dict(given))
    schema = whole.exclude(_is_endless)
    schema.config.phases.update(phases=phases)
    each = max(1, min(EXAMPLES_EACH_MAX, left // schema.statistic.operations.selected))
    schema.config.generation.update(max_examples=each)
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished) and event.status is not Status.SKIP:
            tally.record(event.recorder)
            told(tally)
        elif isinstance(event, events.NonFatalError):
            tally.errors.append(f"{event.label}: {event.value}"[:SHOWN_CHARS_MAX])
        elif isinstance(event, events.FatalError):
            raise event.exception
