"""The documentation held against the code: tables both ways, names, links, and the examples run.

A page that names something that is not there, or misses something that is, fails here.
"""

import ast
import importlib
import json
import pkgutil
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import click
import prometheus_client.metrics
import pytest
from msgspec.structs import fields
from tests.conftest_log import LogDatabase
from tests.crash.__main__ import main as crash

import sightline
from sightline import cli
from sightline.adapters import images, metrics, settings
from sightline.adapters.objects.port import ObjectStoreError
from sightline.adapters.settings import ALIASES, Settings
from sightline.domain.events import AGGREGATES, EVENTS
from sightline.domain.kernel import Rejection
from sightline.domain.upcasts import UPCASTS
from sightline.http.app import create_app
from sightline.http.problems import STATUSES
from sightline.http.seeds.layered_images_shapes import FACADE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"
TICKED = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
ROUTE = re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[^\s?]*)")
PICTURE_BYTES_MAX = 400 * 1024
# Other people's programs that an example may call.
PROGRAMS = frozenset({"export", "docker", "git", "kubectl", "podman"})


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table, headers aside."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if not re.fullmatch(r"\|[-|]+\|", line) and not re.fullmatch(r"\|[-|]+\|", following):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def rows_of(text: str, cells: int) -> list[list[str]]:
    """Rows of the tables that are so many cells wide."""
    return [row for row in rows(text) if len(row) == cells]


def ticked(cell: str) -> tuple[str, ...]:
    return tuple(TICKED.findall(cell))


def fences(text: str, kind: str) -> list[str]:
    return [textwrap.dedent(found["text"]) for found in FENCE.finditer(text) if found["kind"] == kind]


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text()


# Settings, metrics, events, errors, commands: each table is the code's, row by row.

TYPES: dict[Any, str] = {
    Path: "path",
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    bool | None: "boolean",  # empty: another setting decides
    list[str]: "list of text",
}


def documented_settings(text: str) -> dict[str, tuple[tuple[str, ...], str, str]]:
    return {
        ticked(variable)[0]: (ticked(aliases), kind, default.strip("`"))
        for variable, aliases, kind, default, _ in rows(text)
    }


def shown_default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value not in ("", [], None) else "empty"


def declared_settings() -> dict[str, tuple[tuple[str, ...], str, str]]:
    defaults = Settings()
    return {
        f"SIGHTLINE_{spec.name.upper()}": (
            ALIASES.get(spec.name, ()),
            TYPES[spec.type],
            shown_default(getattr(defaults, spec.name)),
        )
        for spec in fields(Settings)
    }


def test_every_setting_is_told_as_it_is() -> None:
    text = page("settings")
    assert documented_settings(text) == declared_settings()
    assert documented_settings(text.replace("`8000`", "`8080`")) != declared_settings()
    assert documented_settings(text.replace("`JOB_TIMEOUT_SECONDS`", "")) != declared_settings()


def declared_metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, prometheus_client.metrics.MetricWrapperBase):
            [described] = metric.describe()
            suffix = "_total" if described.type == "counter" else ""
            found[described.name + suffix] = (described.type, tuple(metric._labelnames))
    return found


def test_every_metric_is_told_as_it_is() -> None:
    documented = {ticked(name)[0]: (kind, ticked(labels)) for name, kind, labels, _ in rows_of(page("metrics"), 4)}
    assert documented == declared_metrics()
    assert all(name.startswith("sightline_") for name in documented)


def test_every_event_is_told_with_its_fields() -> None:
    documented = {ticked(row[0])[0]: ticked(row[1]) for row in rows_of(page("events"), 3)}
    assert documented == {tag: event.__struct_fields__ for tag, event in EVENTS.items()}


def test_every_earlier_generation_is_told_with_the_next() -> None:
    documented = {ticked(row[0])[0]: ticked(row[1])[0] for row in rows_of(page("events"), 4)}
    assert documented == {tag: step.tag for tag, step in UPCASTS.items()}


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(sightline.__path__, "sightline."):
        if not found.name.endswith(".__main__"):
            yield importlib.import_module(found.name)


def codes_of(base: type) -> set[str]:
    """Of a class of refusals, and of those under it that are ours."""
    found = {cast("Any", base).code}
    subclasses: list[type] = base.__subclasses__()
    for one in subclasses:
        if one.__module__.startswith("sightline."):
            found |= codes_of(one)
    return found


def test_every_code_of_a_refusal_has_a_status_and_is_told() -> None:
    for _ in modules():
        pass  # imported: now every subclass is known
    declared = codes_of(Rejection) | codes_of(ObjectStoreError) | set(get_args(images.Code)) - {""}
    assert declared - STATUSES.keys() == set()
    documented = {ticked(row[0])[0]: row[1] for row in rows(page("errors")) if row[1].isdigit()}
    assert documented == {code: str(status) for code, status in STATUSES.items()}


def test_a_code_without_a_status_would_be_noticed() -> None:
    class Undocumented(Rejection):
        code = "undocumented"

    Undocumented.__module__ = "sightline.test"
    assert "undocumented" in codes_of(Rejection) - STATUSES.keys()
    Undocumented.__module__ = __name__


def failure_codes(source: str) -> set[str]:
    """Codes that a failed attempt may end with, as literals in the code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"KindFailed", "RunnerError", "ModelRefused", "__init__"}:
                found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
            found |= {
                word.value.value
                for word in node.keywords
                if word.arg == "code" and isinstance(word.value, ast.Constant)
            }
        elif isinstance(node, ast.FunctionDef) and node.name == "why_over":
            returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
            found |= {one.value for one in returned if isinstance(one, ast.Constant)}
    return {code for code in found if isinstance(code, str)}


def test_every_code_of_a_failed_job_is_told() -> None:
    source = ROOT / "src"
    files = [
        *(source / "workers").rglob("*.py"),
        source / "domain" / "attempts.py",
        source / "adapters" / "embedder.py",
        *(source / "adapters").glob("onnx*.py"),
    ]
    declared = set[str]().union(*(failure_codes(path.read_text()) for path in files))
    assert {ticked(row[0])[0] for row in rows(page("errors")) if not row[1].isdigit()} == declared
    assert failure_codes('raise KindFailed("surprise", "…")') == {"surprise"}


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by its whole name, those of groups too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def test_every_command_is_told_with_its_options() -> None:
    documented = {ticked(row[0])[0]: set(ticked(row[1])) for row in rows(page("cli"))}
    assert documented == {
        name: {option for one in command.params for option in one.opts if option.startswith("--")}
        for name, command in commands(cli.main)
    }


# Whatever a page names in passing: paths of the API, settings, commands, files, events, links.


def served() -> set[str]:
    """Methods and paths, parameters without their names. The application opens nothing, so it needs no parts."""
    app = create_app(cast("Any", SimpleNamespace(settings=settings.read({}), keys_under_way=set())))
    return {
        f"{method} {re.sub(r'{[^}]*}', '{}', route.path_format)}"
        for route in app.routes
        for method in cast("Any", route).methods
    }


SERVED = served()
MADE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
VARIABLES = {f"SIGHTLINE_{spec.name.upper()}" for spec in fields(Settings)}
COMPOSED = set(re.findall(r"\$\{(SIGHTLINE_\w+)", (ROOT / "compose.yaml").read_text()))
FOLDERS = ("src/", "tests/", "schema/", "tools/", "docs/", "requirements/", "benchmarks/")
TAG = re.compile(rf"({'|'.join(AGGREGATES)})\.[a-z_]+(\.\d+)?")


def unknown(text: str) -> list[str]:
    """Names in backticks that look like one of ours and are not."""
    found = []
    for name in TICKED.findall(FENCE.sub("", text)):
        path = re.sub(r"{[^}]*}", "{}", name.partition("?")[0]).removesuffix("/…")
        words = name.split()
        known = True
        if ROUTE.fullmatch(name.partition("?")[0]):
            known = path in SERVED or path.startswith("GET /v1/{}/")
        elif name.startswith("SIGHTLINE_") and "<" not in name:
            known = name in VARIABLES | COMPOSED
        elif words[0] == "make" and len(words) > 1:
            known = words[1] in MADE
        elif words[0] == "sightline" and len(words) > 1:
            known = words[1] in cli.main.list_commands(click.Context(cli.main))
        elif name.startswith(FOLDERS) and "(" not in name and "invert" not in name:
            known = (ROOT / name).exists()
        elif TAG.fullmatch(name):
            known = name in EVENTS or name in UPCASTS
        if not known:
            found.append(name)
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_a_page_names_is_there(path: Path) -> None:
    text = path.read_text()
    assert unknown(text) == []
    assert [link for link in LINK.findall(text) if not (path.parent / link).exists()] == []


def test_what_is_not_there_is_noticed() -> None:
    assert unknown("`GET /v1/lots`, `POST /v1/jobs`") == ["GET /v1/lots"]
    assert unknown("`SIGHTLINE_COLOUR`, `make tea`, `sightline fly`, `src/moon.py`, `job.painted`") == [
        "SIGHTLINE_COLOUR",
        "make tea",
        "sightline fly",
        "src/moon.py",
        "job.painted",
    ]
    assert LINK.findall("[a](b.md#c) [d](https://e.example/f.md)") == ["b.md"]


def reached(start: Path) -> set[Path]:
    """Pages and pictures that links lead to, from `start` on."""
    found, left = set[Path](), [start.resolve()]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            links = LINK.findall(path.read_text()) if path.suffix == ".md" else []
            left += [(path.parent / link).resolve() for link in links]
    return found


def test_every_page_can_be_found_from_the_readme_and_no_picture_is_heavy() -> None:
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert {*PAGES, *pictures} - reached(ROOT / "README.md") == set()
    assert max(picture.stat().st_size for picture in pictures) <= PICTURE_BYTES_MAX


def wrong_commands(shell: str) -> list[str]:
    """Lines with a prompt that call something of ours which does not exist."""
    return [line for line in re.findall(r"^\$ (.*)$", shell, re.MULTILINE) if not _callable(shlex.split(line))]


def _callable(words: list[str]) -> bool:
    program, arguments = Path(words[0]).name, words[1:]
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    match program:
        case "make":
            return arguments[0] in MADE
        case "sightline":
            command: click.Command | None = cli.main
            for word in arguments:
                command = (
                    command.get_command(click.Context(command), word) if isinstance(command, click.Group) else command
                )
            return command is not None and options <= {one for param in command.params for one in param.opts}
        case "alembic":
            return arguments[0] in {"upgrade", "downgrade", "current", "history", "check", "revision"}
        case "python":
            if arguments[:2] == ["-m", "tests.crash"]:
                return options <= {one for param in crash.params for one in param.opts}
            return arguments[:2] == ["-m", "pytest"] and (ROOT / arguments[2]).exists()
        case "curl":
            [url] = [word for word in arguments if "localhost" in word]
            path = re.sub(r"\$\w+", "{}", url.partition(":8000")[2].partition("?")[0])
            method = "POST" if {"--json", "-d", "-F"} & set(arguments) else "GET"
            return f"{method} {path}" in {re.sub(r"^GET /v1/trace/{}", "GET /v1/trace/job", one) for one in SERVED}
    return program in PROGRAMS


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_with_a_prompt_exist(path: Path) -> None:
    assert [wrong for shell in fences(path.read_text(), "console") for wrong in wrong_commands(shell)] == []


def test_a_command_that_does_not_exist_is_noticed() -> None:
    shell = "$ make tea\n$ sightline up --fast\n$ curl -s localhost:8000/v1/lots\n$ rm -rf var\n$ sightline status\n"
    assert len(wrong_commands(shell)) == 4


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_python_in_a_page_compiles_and_what_is_whole_runs(path: Path) -> None:
    for source in fences(path.read_text(), "python"):
        code = compile(source, name_of(path), "exec")
        if source.startswith(("from ", "import ")):
            exec(code, {"__name__": "example"})  # our own pages


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_sql_in_a_page_runs(path: Path, request: pytest.FixtureRequest) -> None:
    for query in fences(path.read_text(), "sql"):
        if "\\connect" in query:
            continue  # needs a server of its own: see test_compose.py
        database: LogDatabase = request.getfixturevalue("log_database")
        with database.connect() as connection:
            connection.execute(query.encode())


def test_facades_say_400_where_the_page_says_so() -> None:
    lines = [row for row in rows(page("errors")) if row[1].isdigit()]
    natives = {ticked(row[0])[0]: int(row[1]) for row in lines}
    assert {natives[code] for code in FACADE.statuses} == {409, 415, 422}
    assert set(FACADE.statuses.values()) == {400}


# Seeds: every name in a seed's document has its row, and no row is about a name that the document does not have.

SEEDS: dict[str, dict[str, list[str]]] = json.loads((ROOT / "tests" / "seed_names.json").read_text())
NAMES = {name for seed in SEEDS.values() for names in seed.values() for name in names}


def mapped(text: str) -> dict[str, str]:
    """What the page says of each name of a seed."""
    return {row[0].replace("`", ""): row[1] for row in rows(text)}


def test_every_name_of_a_seed_has_its_row() -> None:
    text = page("seeds")
    assert mapped(text).keys() == NAMES
    assert all(mapped(text).values())
    without = re.sub(r"^\| `GET /health`.*\n", "", text, flags=re.MULTILINE)
    assert NAMES - mapped(without).keys() == {"GET /health"}


def test_every_path_of_a_seed_is_served_verbatim() -> None:
    named = [path for seed in SEEDS.values() for path in seed.get("paths", ())]
    wanted = {path if " " in path else f"GET {path}" for path in named}
    assert {re.sub(r"{[^}]*}", "{}", path) for path in wanted} - SERVED == set()


def test_every_variable_of_the_seed_is_read_or_has_a_reason() -> None:
    read = {alias for aliases in ALIASES.values() for alias in aliases}
    assert set(SEEDS["S3"]["variables"]) - read == {".env", "API_PREFIX"}


def unmeasured(text: str) -> set[str]:
    """The figures of a text that no result of a benchmark has."""
    measured = " ".join(path.read_text() for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    known = set(re.findall(r"[0-9][0-9,.]*[0-9]|[0-9]", measured))
    return set(re.findall(r"[0-9][0-9,.]*[0-9]", text)) - known


def test_every_figure_in_the_readme_was_measured() -> None:
    text = (ROOT / "README.md").read_text()
    fast = text[text.index("## How fast") : text.index("## The house")]
    assert unmeasured(fast) == set()
    assert unmeasured(fast + " 37,161 ") == {"37,161"}
