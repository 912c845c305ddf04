"""What the documented examples use of curl, for machines that have none: `-s -S -I -X -F -O -o -w` and a URL.

Only where curl is missing (see conftest.py): the examples are written for the real one, and run with it where it is.
"""

import argparse
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx


def main() -> int:
    options = argparse.ArgumentParser(prog="curl")
    options.add_argument("-s", action="store_true")
    options.add_argument("-S", action="store_true")
    options.add_argument("-I", action="store_true")
    options.add_argument("-X", default=None)
    options.add_argument("-F", action="append", default=[])
    options.add_argument("-O", action="store_true")
    options.add_argument("-o", type=Path)
    options.add_argument("-w", default="")
    options.add_argument("url")
    given = options.parse_args()
    method = given.X or ("POST" if given.F else "HEAD" if given.I else "GET")
    answer = httpx.request(method, given.url, files=parts(given.F), timeout=30)
    target = Path(Path(urlsplit(given.url).path).name) if given.O else given.o
    if target is None:
        sys.stdout.buffer.write(answer.content)
    else:
        target.write_bytes(answer.content)
    sys.stdout.buffer.flush()
    sys.stdout.write(given.w.replace("%{http_code}", str(answer.status_code)).replace("\\n", "\n"))
    return 0


def parts(fields: list[str]) -> list[tuple[str, tuple[str | None, bytes]]] | None:
    """`-F name=value` and `-F name=@file`, as httpx sends a form in parts."""
    found: list[tuple[str, tuple[str | None, bytes]]] = []
    for field in fields:
        name, _, value = field.partition("=")
        path = Path(value[1:]) if value.startswith("@") else None
        found.append((name, (path.name, path.read_bytes()) if path else (None, value.encode())))
    return found or None


if __name__ == "__main__":
    sys.exit(main())
