"""What may be asked: URLs that mean harm, names that change their meaning, answers that never end."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import aiohttp
import pytest
from tests.http.test_tls import certificate
from tests.workers.receiver import receiving

from sightline.adapters import egress, egress_rules
from sightline.adapters.egress import ANSWER_BYTES_MAX, Egress
from sightline.adapters.egress_rules import Rules, UrlRefused
from sightline.adapters.settings import SettingsError, read

PUBLIC = Rules()
LOOPBACK = Rules((ipaddress.ip_network("127.0.0.0/8"),), plain_http=True)
HEADERS = {"webhook-id": "msg_1"}

HOSTILE: dict[str, Sequence[str]] = {
    "malformed": [
        *("", "https:", "//example.com/", "example.com", "https:/example.com", "https:example.com"),
        *(
            "https://example.com/#fragment",
            "https://example.com/ space",
            " https://example.com/",
            "https://exa\tmple.com/",
        ),
        *(
            "https://example.com/\r\nX: y",
            "https://example.com\\@127.0.0.1/",
            "https://exämple.com/",
            "https://example。com/",
        ),
        *("https://①②⑦.⓪.⓪.①/", "https://example.com/" + "x" * 2000, "https://example.com/\0"),
    ],
    "scheme": [
        *("http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com:11211/_stats"),
        *("ws://example.com/", "dict://example.com:6379/", "httpss://example.com/", "unix://run/docker.sock"),
    ],
    "userinfo": [
        *("https://user@example.com/", "https://user:word@example.com/", "https://example.com@127.0.0.1/"),
        *("https://127.0.0.1:443@example.com/", "https://@example.com/", "https://example.com:443@/"),
        "https://example.com%2f@x/",
    ],
    "port": [
        *("https://example.com:22/", "https://example.com:25/", "https://example.com:80/", "https://example.com:1/"),
        *("https://example.com:1023/", "https://example.com:65536/", "https://example.com:99999/"),
        *("https://example.com:6000/", "https://example.com:2049/", "https://example.com:6667/"),
    ],
    "host": [
        *(
            "https:///",
            "https://:443/",
            "https://localhost/",
            "https://LOCALHOST/",
            "https://a.localhost/",
            "https://intranet/",
        ),
        *(
            "https://printer.local/",
            "https://metadata.google.internal/",
            "https://hidden.onion/",
            "https://router.home.arpa/",
        ),
        *("https://127.1/", "https://127.0.1/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/"),
        *("https://0177.0.0.1/", "https://017700000001/", "https://127.0.0.01/", "https://127.0.0.1.5/", "https://0/"),
        *(
            "https://256.1.1.1/",
            "https://127.0.0.1./",
            "https://example.com./",
            "https://-a.example.com/",
            "https://a..com/",
        ),
        *("https://%31%32%37.0.0.1/", "https://[::1/", "https://[fe80::1%25eth0]/"),
        *(
            "https://[v1.x]/",
            "https://[::ffff:127.1]/",
            "https://[:::1]/",
            "https://example.com:/",
            "https://example.com:0443/",
        ),
        *(
            "https://example.com:+443/",
            "https://example.com:443:80/",
            "https://" + "a" * 64 + ".com/",
            "https://1.2.3.0x4/",
        ),
        "https://" + ".".join(["a" * 60] * 5) + ".com/",
    ],
    "address": [
        *(
            "https://127.0.0.1/",
            "https://127.255.255.254:8443/",
            "https://0.0.0.0/",
            "https://10.0.0.1/",
            "https://172.16.0.1/",
        ),
        *("https://172.31.255.255/", "https://192.168.1.1/", "https://169.254.169.254/latest/meta-data/"),
        *("https://100.64.0.1/", "https://100.127.255.255/", "https://192.0.0.192/", "https://192.0.2.1/"),
        *("https://198.18.0.1/", "https://198.51.100.1/", "https://203.0.113.1/", "https://192.88.99.1/"),
        *("https://224.0.0.1/", "https://239.255.255.250/", "https://240.0.0.1/", "https://255.255.255.255/"),
        *("https://168.63.129.16/", "https://[::1]/", "https://[::]/", "https://[0:0:0:0:0:0:0:1]/"),
        *("https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[::ffff:169.254.169.254]/"),
        *("https://[::ffff:a00:1]/", "https://[::127.0.0.1]/", "https://[::7f00:1]/", "https://[64:ff9b::7f00:1]/"),
        *("https://[64:ff9b::a9fe:a9fe]/", "https://[64:ff9b:1::7f00:1]/", "https://[2002:7f00:1::]/"),
        *("https://[2002:a9fe:a9fe::1]/", "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", "https://[fe80::1]/"),
        *(
            "https://[fec0::1]/",
            "https://[fc00::1]/",
            "https://[fd00:ec2::254]/",
            "https://[ff02::1]/",
            "https://[2001:db8::1]/",
        ),
        *(
            "https://[3fff::1]/",
            "https://[100::1]/",
            "https://[5f00::1]/",
            "https://[2001:20::1]/",
            "https://[::ffff:0:7f00:1]/",
        ),
        *("https://[2606:4700::5efe:7f00:1]/", "https://[2606:4700::200:5efe:a00:1]/"),
    ],
}
CASES = [(reason, url) for reason, urls in HOSTILE.items() for url in urls]
HARMLESS = [
    *("https://example.com/", "https://example.com", "HTTPS://Example.COM/Hook?a=b&c=%20", "https://example.com:443/x"),
    *("https://example.com:8443/", "https://hooks.a-b_c.example.com:1024/", "https://xn--mnchen-3ya.de/?x=y@z:1"),
    *(
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]/",
        "https://[::ffff:8.8.8.8]/",
        "https://[64:ff9b::808:808]/",
    ),
    *("https://example.com?a=b", "https://example.com/..//.%2e/", "https://100.128.0.1/", "https://172.32.0.1/"),
]


def refused(url: str, rules: Rules = PUBLIC) -> str:
    """The rule that a URL breaks."""
    with pytest.raises(UrlRefused) as caught:
        rules.target(url)
    assert caught.value.detail.startswith(caught.value.reason)
    return caught.value.reason


@pytest.mark.parametrize(("reason", "url"), CASES, ids=[url[:60] for _, url in CASES])
def test_a_hostile_url_is_refused_by_its_rule(reason: str, url: str) -> None:
    assert refused(url) == reason


def test_the_corpus_is_large_and_says_everything_once() -> None:
    assert len({url for _, url in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("url", HARMLESS)
def test_a_harmless_url_is_taken(url: str) -> None:
    target = PUBLIC.target(url)
    assert target.url.startswith("https://")
    assert PUBLIC.target(target.url) == target


def test_each_rule_is_what_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one rule off, its URLs pass (or break another), so that none is refused by accident."""
    monkeypatch.setattr(egress_rules, "_is_public", lambda _: True)
    assert all(PUBLIC.target(url) for url in HOSTILE["address"])
    monkeypatch.setattr(egress_rules, "PORTS_MIN", 1)
    monkeypatch.setattr(egress_rules, "PORTS_CLOSED", frozenset())
    assert [url for url in HOSTILE["port"] if _passes(url)] == [
        url for url in HOSTILE["port"] if not url.endswith((":65536/", ":99999/"))
    ]
    monkeypatch.setattr(egress_rules, "SUFFIXES_CLOSED", ())
    assert _passes("https://printer.local/")
    assert not _passes("https://intranet/")


def _passes(url: str) -> bool:
    try:
        return PUBLIC.target(url) is not None
    except UrlRefused:
        return False


def test_networks_and_plain_http_are_settings() -> None:
    rules = Rules.of(read({}, webhook_networks=["10.1.0.0/16", "fd00::/8"], webhook_plain_http=True))
    for url in ("http://10.1.2.3/", "https://[fd12::1]/", "http://hooks.internal/", "http://[::ffff:10.1.2.3]:8080/"):
        assert rules.target(url)
    assert refused("https://10.2.0.1/", rules) == "address"
    assert refused("http://127.0.0.1/", rules) == "address"
    with pytest.raises(SettingsError, match="WEBHOOK_NETWORKS"):
        Rules.of(read({}, webhook_networks=["10.1.2.3/16"]))


# What a name means is asked once, judged whole, and what was judged is connected to.


class Names:
    """A resolver: each question takes the next answer; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    async def __call__(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        return self._answers[min(len(self.asked), len(self._answers)) - 1]


async def post(
    url: str, resolve: Callable[[str], Awaitable[Sequence[str]]] | None = None, **given: object
) -> egress.Answer:
    wanted: dict[str, object] = {"rules": LOOPBACK, "timeout_s": 5.0} | given
    async with Egress(resolve=resolve, **wanted) as opened:  # type: ignore[arg-type]  # as a test spells it
        return await opened.post(url, HEADERS, b"{}")


async def test_a_name_is_looked_up_once_and_that_address_is_asked_under_its_name() -> None:
    names = Names(["127.0.0.2"], ["10.0.0.1"])
    async with receiving() as receiver:
        url = receiver.url(host="hooks.example")
        with pytest.raises((aiohttp.ClientError, OSError)):
            await post(url, names)  # nobody listens at 127.0.0.2: it was asked there, and nowhere else
        assert receiver.received == []
        there = Names(["127.0.0.1"])
        assert (await post(url, there)).status == 204
        [one] = receiver.received
        assert one.headers["host"] == f"hooks.example:{receiver.port}"
    assert names.asked == there.asked == ["hooks.example"]


async def test_a_name_that_means_something_else_the_next_time_is_refused_then() -> None:
    """DNS rebinding: public, or allowed, when it was looked at, and another address when it is used."""
    names = Names(["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1", "169.254.169.254"], ["127.0.0.1"])
    async with receiving() as receiver, Egress(LOOPBACK, timeout_s=5, resolve=names) as opened:
        url = receiver.url(host="rebinding.example")
        assert (await opened.post(url, HEADERS, b"{}")).status == 204
        for _ in range(2):
            with pytest.raises(UrlRefused, match="address"):
                await opened.post(url, HEADERS, b"{}")
        assert (await opened.post(url, HEADERS, b"{}")).status == 204
        assert len(receiver.received) == 2
    assert len(names.asked) == 4


@pytest.mark.parametrize("host", ["127.0.0.1", "hooks.example"])
async def test_with_the_rule_off_the_same_url_connects(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """The control: what refuses is the rule, not a server that is not there."""
    names = Names(["127.0.0.1"])
    rules = Rules(plain_http=True)
    async with receiving() as receiver:
        with pytest.raises(UrlRefused, match="address"):
            await post(receiver.url(host=host), names, rules=rules)
        assert receiver.received == []
        monkeypatch.setattr(egress_rules, "_is_public", lambda _: True)
        assert (await post(receiver.url(host=host), names, rules=rules)).status == 204


async def test_the_socket_itself_is_the_last_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a resolver of the library's would have answered."""

    async def unjudged(self: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:
        place = {"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        return [place]

    monkeypatch.setattr(egress._Judged, "resolve", unjudged)
    async with receiving() as receiver:
        with pytest.raises(UrlRefused, match="address"):
            await post(receiver.url(host="hooks.example"), rules=Rules(plain_http=True))
        assert receiver.received == []


async def test_a_name_of_the_system_is_resolved_apart() -> None:
    async with receiving() as receiver:
        rules = Rules((*LOOPBACK.networks, ipaddress.ip_network("::1/128")), plain_http=True)
        assert (await post(receiver.url(host="localhost"), rules=rules)).status == 204
    with pytest.raises((aiohttp.ClientError, OSError)):
        await post("http://nobody.invalid/")


async def test_tls_speaks_the_name_and_wants_its_certificate(tmp_path: Path) -> None:
    """To the address that was looked at, SNI and certificate are of the name."""
    cert, key = certificate(tmp_path, "hooks.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    asked: list[str | None] = []
    server.sni_callback = lambda _, name, __: asked.append(name)
    trusting = ssl.create_default_context(cafile=cert)
    async with receiving(tls=server) as receiver:
        url = receiver.url(host="hooks.example").replace("http:", "https:")
        assert (await post(url, Names(["127.0.0.1"]), tls=trusting)).status == 204
        assert (asked, receiver.received[0].headers["host"]) == (["hooks.example"], f"hooks.example:{receiver.port}")
        with pytest.raises(aiohttp.ClientSSLError):
            await post(url.replace("hooks", "other"), Names(["127.0.0.1"]), tls=trusting)
        with pytest.raises(aiohttp.ClientSSLError):
            await post(url, Names(["127.0.0.1"]))  # nobody vouches for it
        assert len(receiver.received) == 1


# Answers


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async with receiving() as other, receiving(answer=lambda _: 302) as receiver:
        receiver.headers["Location"] = other.url()
        assert (await post(receiver.url())).status == 302
        assert other.received == []


async def test_of_an_answer_the_beginning_is_read() -> None:
    async with receiving(answer=lambda _: 200, body=b"x" * 1_000_000) as receiver:
        assert (await post(receiver.url())).body == b"x" * ANSWER_BYTES_MAX


async def test_who_never_answers_is_given_up() -> None:
    async with receiving(answer=lambda _: 0) as receiver:
        with pytest.raises(TimeoutError):
            await post(receiver.url(), timeout_s=0.2)
        assert len(receiver.received) == 1


async def test_who_never_resolves_is_given_up() -> None:
    async def never(_: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(TimeoutError):
        await post("http://hooks.example/", never, timeout_s=0.1)


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as receiver:
        monkeypatch.setenv("HTTP_PROXY", proxy.url(""))
        monkeypatch.setenv("http_proxy", proxy.url(""))
        await post(receiver.url())
        assert (len(receiver.received), proxy.received) == (1, [])
