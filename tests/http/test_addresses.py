"""Who is counted: the socket's other end, or what trusted proxies say, and nothing that a client may say itself."""

from typing import Any

import pytest

from sightline.adapters.settings import SettingsError
from sightline.http.addresses import HOPS_MAX, UNKNOWN, client_address, trusted_networks

PROXIES = trusted_networks(["10.0.0.0/8", "2001:db8:ffff::/48"])


def told(peer: str | None, *forwarded: str, trusted: Any = PROXIES) -> str:
    lines = [(b"x-forwarded-for", line.encode("latin-1")) for line in forwarded]
    scope: Any = {"client": (peer, 1234) if peer is not None else None, "headers": [(b"host", b"h"), *lines]}
    return client_address(scope, trusted)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", (), "203.0.113.9"),
        ("203.0.113.9", ("198.51.100.1",), "203.0.113.9"),  # nobody's word but a proxy's counts
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("1.1.1.1, 198.51.100.1",), "198.51.100.1"),  # what the client sent itself stands to the left
        ("10.0.0.1", ("1.1.1.1, 198.51.100.1, 10.9.9.9",), "198.51.100.1"),
        ("10.0.0.1", ("1.1.1.1", "198.51.100.1", "10.9.9.9"), "198.51.100.1"),  # the same in lines of their own
        ("10.0.0.1", ("10.1.1.1, 10.2.2.2",), "10.1.1.1"),
        ("10.0.0.1", ("198.51.100.1:5678",), "198.51.100.1"),
        ("10.0.0.1", ("[2001:db8:1:2:3::4]:5678",), "2001:db8:1:2::/64"),
        ("10.0.0.1", ("[2001:db8:1:2:3::4]",), "2001:db8:1:2::/64"),
        ("10.0.0.1", ("::ffff:198.51.100.1",), "198.51.100.1"),
        ("::ffff:10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("2001:db8:ffff::7", ("198.51.100.1",), "198.51.100.1"),
        ("fe80::1%eth0", (), "fe80::/64"),
        ("10.0.0.1", ("198.51.100.1, nonsense",), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1, ",), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1, 010.0.0.1",), "10.0.0.1"),
        ("10.0.0.1", ("unknown",), "10.0.0.1"),
        ("10.0.0.1", ("\xff\x00é",), "10.0.0.1"),
        (None, ("198.51.100.1",), UNKNOWN),
        ("testclient", ("198.51.100.1",), UNKNOWN),
    ],
)
def test_the_first_that_no_trusted_proxy_is(peer: str | None, forwarded: tuple[str, ...], client: str) -> None:
    assert told(peer, *forwarded) == client


def test_without_trusted_proxies_nothing_is_believed() -> None:
    assert told("10.0.0.1", "198.51.100.1", trusted=[]) == "10.0.0.1"


def test_trusting_everybody_would_believe_the_client() -> None:
    """The control: what `*` would do, which no setting can say."""
    everybody: Any = [*trusted_networks(["0.0.0.0/1", "128.0.0.0/1"])]
    assert told("203.0.113.9", "6.6.6.6", trusted=everybody) == "6.6.6.6"


def test_one_client_has_all_of_its_64() -> None:
    assert {told(f"2001:db8:1:2:{n:x}::1") for n in range(50)} == {"2001:db8:1:2::/64"}
    assert told("2001:db8:1:3::1") != told("2001:db8:1:2::1")


def test_a_list_of_any_length_is_walked_from_its_end_for_so_many_hops() -> None:
    assert told("10.0.0.1", ",".join(["6.6.6.6"] * 100_000 + ["198.51.100.1"])) == "198.51.100.1"
    assert told("10.0.0.1", ",".join(["6.6.6.6", *["10.0.0.2"] * HOPS_MAX])) == "10.0.0.2"


@pytest.mark.parametrize("word", ["*", "0.0.0.0/0", "::/0", "10.0.0.1/8", "proxy.example", "", "10.0.0.0-10.0.0.9"])
def test_only_exact_networks_are_trusted(word: str) -> None:
    with pytest.raises(SettingsError, match="trusted_proxies"):
        trusted_networks([word])
