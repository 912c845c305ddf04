"""The real parts that tests run against. Each starts when the first test asks for it."""

pytest_plugins = [
    "tests.conftest_parts",
    "tests.conftest_objects",
    "tests.conftest_log",
    "tests.conftest_service",
    "tests.conftest_up",
]
