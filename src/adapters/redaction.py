"""What never stands in a log line or an error: keys, tokens, passwords, signatures, email addresses.

Three nets, each for what the one before lets through: fields whose name says secret, texts that look like one, and the
very secrets of this process's settings, however they look. What is taken out leaves a mark. A text too long for its
line is cut after it was looked at, so that no half of a secret is left at the cut.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from msgspec.structs import asdict

from .settings import REDACTED, Settings

TEXT_CHARS_MAX = 2_000  # of one text, so that a line stays a line that tools take
STACK_CHARS_MAX = 16_000  # of an exception with its stack, half from each end
LINE_CHARS_MAX = 48_000  # of all texts of a line together
NAME_CHARS_MAX = 200
NAMES_MAX = 1_000
ITEMS_MAX = 200  # of a line, whatever they are nested in
DEPTH_MAX = 6
LOOKAHEAD_CHARS = 8_192  # beyond a cut, so that a secret across it is seen whole
SECRET_CHARS_MIN = 6  # a shorter setting would be found in every other word
INTEGER_BITS_MAX = 64
CUT = "[…]"

_NAMES = (
    r"(?:password|passwd|passphrase|secret|token|api[_-]?key|apikey|authorization|cookie|signature|credential"
    r"|(?:sealing|private|signing|access|session|digest)[_-]?key)"
)
_NAMED = re.compile(_NAMES + r"|^(?:e?mail|email_address|full_name)$", re.IGNORECASE)

# One of them stands in whatever the shapes below would find; looking for them first keeps most lines cheap.
_HINTS = (
    *("pass", "secret", "token", "key", "auth", "cookie", "signature", "credential", "bearer", "basic"),
    *("sl_", "eyj", "whsec_", "://", "@", "%40"),
)
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?|\\+[\"'].*"  # with escaped quotes: to the end of the line
_VALUE = rf"(?:{_QUOTED}|[^\s&\"',;]+)"
_BETWEEN = r"(?:\\*[\"']\s*[,:=]\s*b?|\s*[:=]\s*b?|%3[aAdD])"
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END[^-]{0,50}-----|$)", re.DOTALL), REDACTED),
    (re.compile(r"PRIVATE\+KEY\+\S+"), REDACTED),
    (
        re.compile(rf"((?:authorization|cookie|x-api-key){_BETWEEN})(?:{_QUOTED}|[^\r\n\"']+)", re.IGNORECASE),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    (re.compile(rf"({_NAMES}[\w-]{{0,40}}{_BETWEEN}){_VALUE}", re.IGNORECASE), rf"\1{REDACTED}"),
    (re.compile(r"\bsl_[A-Za-z0-9_.-]{6,}"), REDACTED),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]{6,}"), REDACTED),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){0,2}"), REDACTED),
    (re.compile(r"(://[^\s:/?#@\"']{0,200}:)[^\s\"']{0,500}@"), rf"\1{REDACTED}@"),
)
_WORD = r"[^\s@\"'<>()\[\]{},;:/\\]"
# From the beginning of a word, so that a long one is looked at once and not from each of its characters.
_EMAIL = re.compile(rf"(?<!{_WORD}){_WORD}+(?:@|%40){_WORD}{{1,200}}\.{_WORD}{{2,63}}")


class Redactor:
    """Takes secrets out of texts and structures.

    Args:
        settings: whose own secrets are looked for as they are; none of them are where it is not given.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        secrets = sorted(_secrets_of(settings), key=len, reverse=True) if settings is not None else []
        self._secrets = tuple(secrets)
        self._names: dict[str, tuple[str, bool]] = {}  # lines have few names, and the same ones

    def __repr__(self) -> str:
        return "Redactor(…)"

    def text(self, text: str) -> str:
        """`text` with a mark where a secret was. Its cost grows with the text: cut that first, see clipped()."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        if not _is_suspicious(text):
            return text
        for shape, mark in _SHAPES:
            text = shape.sub(mark, text)
        return _EMAIL.sub(REDACTED, text) if "@" in text or "%40" in text else text

    def clipped(self, text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
        """The beginning of a text, redacted."""
        shown = self.text(text[: chars_max + LOOKAHEAD_CHARS] if len(text) > chars_max else text)
        return shown if len(shown) <= chars_max and len(text) <= chars_max else shown[:chars_max] + CUT

    def stack(self, text: str) -> str:
        """Both ends of a stack: where it began, and what happened."""
        if len(text) <= STACK_CHARS_MAX:
            return self.text(text)
        half = STACK_CHARS_MAX // 2
        head = self.text(text[: half + LOOKAHEAD_CHARS])[:half]
        # A secret that the cut runs through is known only by its end; the line that it stands in goes as a whole.
        tail = self.text(text[-half:].partition("\n")[2])
        return f"{head}{CUT}\n{tail}"

    def name(self, name: str) -> tuple[str, bool]:
        """A field's name as it is shown, and whether that says that its value is secret."""
        known = self._names.get(name)
        if known is None:
            known = self.clipped(name, NAME_CHARS_MAX), _NAMED.search(name[:NAME_CHARS_MAX]) is not None
            if len(self._names) < NAMES_MAX and len(name) <= NAME_CHARS_MAX:
                self._names[name] = known
        return known

    def plain(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """An event as what JSON has words for, within the bounds of a line, secrets taken out.

        Never raises, whatever the event holds.
        """
        return dict(event) if self._is_clean(event) else _Line(self).mapping(event, depth=0)

    def _is_clean(self, event: Mapping[str, Any]) -> bool:
        """Whether a line is small, flat and without a trace of a secret, as most are: looked at as one text."""
        texts = []
        for name, value in event.items():
            if type(value) is str:
                texts.append(value)
            elif not _is_small_number(value):
                return False
            shown, hides = self.name(name)
            if shown != name or hides:
                return False
        text = "\0".join(texts)
        return (
            len(text) <= TEXT_CHARS_MAX and not _is_suspicious(text) and not any(one in text for one in self._secrets)
        )


class _Line:
    """What is left of one line's bounds."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._items = ITEMS_MAX
        self._chars = LINE_CHARS_MAX

    def mapping(self, given: Mapping[Any, Any], *, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in given.items():
            if self._items <= 0:
                found[CUT] = CUT
                break
            key, hides = self._redactor.name(name if type(name) is str else _said(str, name))
            if depth == 0 and key == "exception" and isinstance(value, str):
                found[key] = self._redactor.stack(value)
            elif hides and not _is_harmless(value):
                found[key] = REDACTED
            else:
                found[key] = self.value(value, depth=depth + 1)
        return found

    def value(self, value: Any, *, depth: int) -> Any:
        self._items -= 1
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            return _integer(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else repr(float(value))
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            if depth > DEPTH_MAX or self._items <= 0:
                return CUT
            return self._nested(value, depth)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._text(repr(bytes(value[: TEXT_CHARS_MAX + LOOKAHEAD_CHARS])))
        return self._text(_said(repr, value))

    def _nested(self, value: Any, depth: int) -> Any:
        try:
            if isinstance(value, Mapping):
                return self.mapping(value, depth=depth)
            return [self.value(one, depth=depth + 1) for one in _first(value, self._items)]
        except Exception as error:  # noqa: BLE001  # a container of its own making may raise anything
            return f"<{type(value).__name__}: {type(error).__name__}>"

    def _text(self, text: str) -> str:
        if self._chars <= 0:
            return CUT
        shown = self._redactor.clipped(text, min(TEXT_CHARS_MAX, self._chars))
        self._chars -= len(shown)
        return shown


def _first(values: Iterable[Any], count: int) -> Iterable[Any]:
    for number, value in enumerate(values):
        if number >= count:
            yield CUT
            return
        yield value


def _is_suspicious(text: str) -> bool:
    lower = text.lower()
    return any(hint in lower for hint in _HINTS)


def _is_small_number(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) is bool or (type(value) is int and value.bit_length() <= INTEGER_BITS_MAX)


def _is_harmless(value: Any) -> bool:
    """Under a name that says secret: a fencing token is a number, and so is a count of tokens."""
    return value is None or value == "" or isinstance(value, bool | int | float)


def _integer(value: int) -> int | str:
    return int(value) if value.bit_length() <= INTEGER_BITS_MAX else f"<integer of {value.bit_length()} bits>"


def _said(say: Callable[[Any], str], value: Any) -> str:
    try:
        return say(value)
    except Exception as error:  # noqa: BLE001  # an object that cannot be told is told by its type
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _secrets_of(settings: Settings) -> set[str]:
    """The values themselves, and as a URL or a repr spells them."""
    given = asdict(settings)
    whole = {one for name, text in given.items() if _is_secret(name) for one in (text, *text.split(","))}
    whole |= {_password_of(text) for name, text in given.items() if name.endswith("_url")}
    spelled = {spelling for one in whole for spelling in (one.strip(), quote(one, safe=""), repr(one)[1:-1])}
    return {one for one in spelled if len(one) >= SECRET_CHARS_MIN}


def _is_secret(name: str) -> bool:
    return name in {"secret_key", "sealing_key", "s3_secret_access_key"}


def _password_of(url: str) -> str:
    user_part, at, _ = url.partition("://")[2].rpartition("@")
    return user_part.partition(":")[2] if at else ""
