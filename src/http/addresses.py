"""Where a request comes from: the socket's other end, or what proxies that we trust say of it.

X-Forwarded-For is whatever the client sent, with one address added by each proxy on the way. So it is read from its
end: each entry is taken on the word of the one after it, the last on the word of the socket, for as long as those are
networks of SIGHTLINE_TRUSTED_PROXIES. The first that is none of them is the client. RFC 7239's `Forwarded` and the
many other headers are not looked at.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from litestar.types import Scope

from ..adapters.settings import SettingsError

HOPS_MAX = 20  # entries that are walked; a list may be as long as its sender likes
CLIENT_BITS = 64  # of an IPv6 address: whoever has one has all of its /64
UNKNOWN = "unknown"  # a unix socket has no other end that could be named

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]

_WITH_PORT = re.compile(r"\[([^\]]{2,45})\](?::\d{1,5})?|([0-9.]{7,15}):\d{1,5}")


def trusted_networks(words: Sequence[str]) -> Networks:
    """The networks that settings name.

    Raises:
        SettingsError: one is no network, or is everybody.
    """
    found = []
    for word in words:
        try:
            network = ip_network(word)
        except ValueError as error:
            raise SettingsError(f"trusted_proxies: {word!r} is not a network such as 10.1.2.3/32: {error}") from error
        if network.prefixlen == 0:
            raise SettingsError(f"trusted_proxies: {word!r} is everybody, whose word is worth nothing")
        found.append(network)
    return found


def client_address(scope: Scope, trusted: Networks) -> str:
    """Who to count a request for: an IPv4 address, or the /64 of an IPv6 one."""
    peer = _parse(scope["client"][0]) if scope["client"] else None
    if peer is None:
        return UNKNOWN
    if trusted:
        peer = _walk(peer, _forwarded(scope), trusted)
    return counted(peer)


def counted(address: Address) -> str:
    """One name for all addresses that one client can take at will."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), CLIENT_BITS), strict=False))


def _walk(peer: Address, entries: Sequence[str], trusted: Networks) -> Address:
    for entry in reversed(entries):
        if not _within(peer, trusted):
            return peer
        said = _parse(entry)
        if said is None:
            return peer  # A proxy that we trust passed on garbage: whatever stands before it is garbage too.
        peer = said
    return peer


def _within(address: Address, networks: Networks) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _forwarded(scope: Scope) -> list[str]:
    """The last HOPS_MAX entries of all X-Forwarded-For lines, in the order of the proxies."""
    lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    text = b",".join(lines).decode("latin-1")
    return [entry.strip() for entry in text.rsplit(",", HOPS_MAX)[-HOPS_MAX:]] if text else []


def _parse(text: str) -> Address | None:
    """An address with or without a port, brackets or a zone; IPv4 in IPv6's clothes is IPv4."""
    port = _WITH_PORT.fullmatch(text)
    bare = (port[1] or port[2]) if port else text
    try:
        address = ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
