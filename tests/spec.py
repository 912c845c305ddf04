"""given these events, when this is decided, then those events, or this refusal: a rule on one line."""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import pytest

from sightline.domain.kernel import Aggregate, Rejection

S = TypeVar("S")


class Given(Generic[S]):
    """One noun after some events: `given(jobs, submitted()).when(cancel, by="ada", now=NOON).then(JobCancelled(…))`."""

    def __init__(self, aggregate: Aggregate[S], *events: Any) -> None:
        self.aggregate = aggregate
        self.state = aggregate.fold(aggregate.initial, events)

    def when(self, decide: Callable[..., list[Any]], **said: Any) -> "When[S]":
        return When(self.aggregate, self.state, partial(decide, **said))


class When(Generic[S]):
    def __init__(self, aggregate: Aggregate[S], state: S, decide: Callable[[S], list[Any]]) -> None:
        self.aggregate, self.state, self.decide = aggregate, state, decide

    def then(self, *expected: Any) -> S:
        """It yields exactly these (none: it is silent), and saying it again yields nothing. Returns the state after."""
        events = self.decide(self.state)
        assert events == list(expected)
        after = self.aggregate.fold(self.state, events)
        assert self.decide(after) == []
        return after

    def refused(self, rejection: type[Rejection]) -> Rejection:
        """It is refused for exactly this reason. Returns the rejection, whose code and extras a client may see."""
        with pytest.raises(rejection) as caught:
            self.decide(self.state)
        assert type(caught.value) is rejection
        return caught.value


given = Given
