"""What may be asked of addresses that strangers name: rules over URLs and addresses, which open nothing.

A URL is judged when it is given, and again at every attempt, with whatever its name means then; see egress.py.
"""

import ipaddress
import re
from typing import Literal

from msgspec import Struct

from ..domain.kernel import Rejection
from .settings import Settings, SettingsError

URL_CHARS_MAX = 2000
NAME_CHARS_MAX = 253

# `scheme`: not https; `userinfo`, `port`, `host`: not as they may be; `address`: where only we can go.
Reason = Literal["malformed", "scheme", "userinfo", "port", "host", "address"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class UrlRefused(Rejection):
    """The rules forbid this URL, or what its name means now. `reason` says which rule."""

    code = "url_refused"

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


# IANA's special-purpose registries, and one public address that is a cloud's own service to its machines.
CLOSED_4 = _networks(
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
)
OPEN_6 = ipaddress.IPv6Network("2000::/3")
CLOSED_6 = _networks("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")  # Teredo is in the first, 6to4 the third
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # the upper half of an interface id that ends in an IPv4 address

PORTS_MIN = 1024
PORTS_BELOW = frozenset({443})
# Ports that browsers do not connect to either (the fetch standard's list): other protocols live there.
PORTS_CLOSED = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6679, 6697, 10080}
)
# Names that mean something else on each network, or on none.
SUFFIXES_CLOSED = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa", "onion", "arpa")

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[1-9][0-9]{0,4}))?")
_TEXT = re.compile(r"[\x21-\x7e]+")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Target(Struct, frozen=True):
    """A URL that may be asked.

    Attributes:
        url: as it is sent.
        host: a name, or an address without brackets.
        address: where the host is one.
    """

    url: str
    scheme: str
    host: str
    port: int
    address: Address | None


class Rules(Struct, frozen=True):
    """Attributes:
    networks: that may be reached although they are not public; with one, names of private networks are names too.
    plain_http: whether `http` is taken as well.
    """

    networks: tuple[Network, ...] = ()
    plain_http: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """
        Raises:
            SettingsError: a network is none.
        """
        try:
            networks = tuple(ipaddress.ip_network(text) for text in settings.webhook_networks)
        except ValueError as error:
            raise SettingsError(f"SIGHTLINE_WEBHOOK_NETWORKS: {error}") from error
        return cls(networks, settings.webhook_plain_http)

    def target(self, url: str) -> Target:
        """The parts of a URL, if it may be asked as far as its text tells.

        One reading: whatever two readers could take differently is refused, not put right.

        Raises:
            UrlRefused: it may not.
        """
        found = _URL.fullmatch(url) if len(url) <= URL_CHARS_MAX and _TEXT.fullmatch(url) else None
        if found is None or "\\" in url:
            raise UrlRefused("malformed", f"a URL has at most {URL_CHARS_MAX} visible ASCII characters, no fragment")
        scheme = found["scheme"].lower()
        if scheme != "https" and not (scheme == "http" and self.plain_http):
            raise UrlRefused("scheme", "https is what may be asked")
        if "@" in found["authority"]:
            raise UrlRefused("userinfo", "no name and no password in it")
        parts = _AUTHORITY.fullmatch(found["authority"].lower())
        if parts is None:
            raise UrlRefused("host", "a name in ASCII (IDNA's xn-- for others), or an address, and a port at most")
        port = int(parts["port"] or (443 if scheme == "https" else 80))
        self._judge_port(port)
        host = parts["host"].strip("[]")
        address = self._literal(parts["host"])
        if address is None:
            self._judge_name(host)
        else:
            self.judge(address)
        return Target(f"{scheme}://{parts[0]}{found['rest'] or '/'}", scheme, host, port, address)

    def judge(self, address: Address) -> None:
        """
        Raises:
            UrlRefused: it is not a public address, nor in a network that was named.
        """
        inner = _inner(address)
        if any(one in network for one in {address, inner} for network in self.networks):
            return
        if not _is_public(inner):
            raise UrlRefused("address", "it leads to an address that is not public")

    def _judge_port(self, port: int) -> None:
        below = PORTS_BELOW | ({80} if self.plain_http else set())
        if not (port in below or PORTS_MIN <= port < 2**16) or port in PORTS_CLOSED:
            raise UrlRefused("port", f"443, or {PORTS_MIN} and above, and none that is another protocol's")

    def _literal(self, host: str) -> Address | None:
        """The address that a host spells, in its one spelling; None: it is a name."""
        try:
            if host.startswith("["):
                return ipaddress.IPv6Address(host.strip("[]"))
            if _NUMBER.fullmatch(host.rpartition(".")[2]):  # what some reader somewhere takes for an IPv4 address
                return ipaddress.IPv4Address(host)
        except ipaddress.AddressValueError as error:
            raise UrlRefused("host", "an address is four decimal numbers, or IPv6 in brackets") from error
        return None

    def _judge_name(self, name: str) -> None:
        labels = name.split(".")
        if len(name) > NAME_CHARS_MAX or not all(map(_LABEL.fullmatch, labels)):
            raise UrlRefused("host", "it is no name of the DNS")
        closed = len(labels) == 1 or any(name == one or name.endswith(f".{one}") for one in SUFFIXES_CLOSED)
        if closed and not self.networks:
            raise UrlRefused("host", "it is a name of private networks")


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it is one that a translator turns back."""
    if isinstance(address, ipaddress.IPv6Address) and (address in NAT64 or address.ipv4_mapped is not None):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in CLOSED_4)
    if address.scope_id is not None or address not in OPEN_6:
        return False
    return int(address) >> 32 & 0xFFFF_FFFF not in ISATAP and not any(address in network for network in CLOSED_6)
