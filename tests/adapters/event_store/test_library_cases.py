"""The eventsourcing library's own test cases, unmodified, on the face."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from eventsourcing import persistence
from eventsourcing.tests import application as theirs_application
from eventsourcing.tests import persistence as theirs
from eventsourcing.utils import Environment
from tests.conftest_library import MODULE, drop_schemas, environment
from tests.conftest_log import LogDatabase

from sightline.adapters.event_store import library


class OnOurLog:
    """What each of their test cases gets: an environment, and no schema left from the one before."""

    @pytest.fixture(autouse=True)
    def _on_our_log(self, library_database: LogDatabase) -> Iterator[None]:
        self.variables = environment(library_database.dsn, POSTGRES_SCHEMA="theirs")
        self.factories: list[library.Factory] = []
        yield
        for factory in self.factories:
            factory.close()
        drop_schemas(library_database)

    def made(self, **more: str) -> library.Factory:
        self.factories.append(library.Factory({**self.variables, **more}))
        return self.factories[-1]


class TestAggregateRecorder(OnOurLog, theirs.AggregateRecorderTestCase):
    def create_recorder(self) -> persistence.AggregateRecorder:
        return self.made().aggregate_recorder()


class TestAggregateRecorderWithTextIds(TestAggregateRecorder):
    def new_originator_id(self) -> str:
        return f"stream-{uuid4()}"

    def create_recorder(self) -> persistence.AggregateRecorder:
        return self.made(ORIGINATOR_ID_TYPE="text").aggregate_recorder()


class TestApplicationRecorder(OnOurLog, theirs.ApplicationRecorderTestCase[persistence.ApplicationRecorder]):
    def create_recorder(self) -> persistence.ApplicationRecorder:
        return self.made().application_recorder()

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestTrackingRecorder(OnOurLog, theirs.TrackingRecorderTestCase):
    def create_recorder(self) -> persistence.TrackingRecorder:
        return self.made().tracking_recorder()


class TestProcessRecorder(OnOurLog, theirs.ProcessRecorderTestCase):
    def create_recorder(self) -> persistence.ProcessRecorder:
        return self.made().process_recorder()


class TestNonInterleavingNotificationIDs(OnOurLog, theirs.NonInterleavingNotificationIDsBaseCase):
    insert_num = 10_000

    def create_recorder(self) -> persistence.ApplicationRecorder:
        return self.made().application_recorder()


class View(library.TrackingRecorder):
    """A tracking recorder of somebody's own."""


class TestInfrastructureFactory(OnOurLog, theirs.InfrastructureFactoryTestCase[library.Factory]):
    def setUp(self) -> None:
        self.env = Environment(env=self.variables)
        super().setUp()

    def expected_factory_class(self) -> type[library.Factory]:
        return library.Factory

    def expected_aggregate_recorder_class(self) -> type[persistence.AggregateRecorder]:
        return library.AggregateRecorder

    def expected_application_recorder_class(self) -> type[persistence.ApplicationRecorder]:
        return library.ApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[persistence.TrackingRecorder]:
        return library.TrackingRecorder

    def tracking_recorder_subclass(self) -> type[persistence.TrackingRecorder]:
        return View

    def expected_process_recorder_class(self) -> type[persistence.ProcessRecorder]:
        return library.ProcessRecorder


class TestExampleApplication(OnOurLog, theirs_application.ExampleApplicationTestCase):
    expected_factory_topic = f"{MODULE}:Factory"

    @pytest.fixture(autouse=True)
    def _in_the_environment(self, _on_our_log: None, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in self.variables.items():
            monkeypatch.setenv(name, value)
