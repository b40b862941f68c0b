"""Addresses of the target in its answers, in every addressing mode, without sockets."""

from __future__ import annotations

from collections.abc import Iterator
from time import thread_time

import pytest

from outrider.dataplane.call import Call
from outrider.dataplane.downstream.relocation import MOST_ATTRIBUTES, MOST_LINKS, readdress, relocate
from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream.cluster import Cluster, Endpoint
from tests.fakes import make_call, make_route

_OWN = "user.internal:3001"
_ELSEWHERE = [
    b"https://elsewhere.example/x",
    b"http://user.internal:30011/x",
    b"http://user.internal/x",
    b"https://user.internal:3001/x",  # a redirect to TLS: rewritten, it would lead in a circle
    b"http://user.internal:3001@elsewhere.example/x",
    b"http://user.internal:3001\\@elsewhere.example/x",
    b"//elsewhere.example/x",
    b"/\\elsewhere.example/x",
    b"relative/path",
    b"../up",
    b"?page=2",
    b"#part",
    b"mailto:x@y.z",
    b"",
]


def make_endpoint(base_path: str = "", authority: str = _OWN, host: str = "10.0.0.1", secure: bool = False) -> Endpoint:
    port = int(authority.rpartition(":")[2]) if ":" in authority.rpartition("]")[2] else 443 if secure else 80
    return Endpoint(host, port, authority=authority, base_path=base_path, secure=secure, stats=ClusterStats())


def called(prefix: bytes = b"", *endpoints: Endpoint, host: bytes = b"127.0.0.1:4100", path: bytes = b"/x") -> Call:
    cluster = Cluster("user", endpoints or (make_endpoint(),), "round-robin", ClusterStats())
    call = make_call(headers={b"Host": host}, route=make_route(cluster))
    call.prefix, call.path = prefix, path
    return call


def readdressed(name: bytes, said: bytes, call: Call, endpoint: Endpoint) -> bytes:
    """The value of a field that is the only one of an answer."""
    lines = [name, b": ", said, b"\r\n"]
    readdress(lines, call, endpoint, start=0)
    return lines[2]


def moved(location: bytes, prefix: bytes = b"", *endpoints: Endpoint) -> bytes:
    call = called(prefix, *endpoints)
    return relocate(location, call, call.route.cluster.endpoints[0])


@pytest.mark.parametrize("prefix", [b"", b"/user"], ids=["by port, header or host", "by prefix"])
@pytest.mark.parametrize(
    ("location", "base", "path"),
    [
        (b"/users/7", "", b"/users/7"),
        (b"/", "", b"/"),
        (b"/login?next=/a", "", b"/login?next=/a"),
        (b"http://user.internal:3001/users/7", "", b"/users/7"),
        (b"HTTP://User.Internal:3001/users/7", "", b"/users/7"),
        (b"http://10.0.0.1:3001/users/7", "", b"/users/7"),
        (b"/api/users/7", "/api", b"/users/7"),
        (b"http://user.internal:3001/api/users/7", "/api", b"/users/7"),
        (b"/api", "/api", b"/"),
        (b"/apiary", "/api", b"/apiary"),
        (b"http://user.internal:3001", "", b"/"),
        (b"http://user.internal:3001?page=2", "", b"/?page=2"),
        (b"http://user.internal:3001#part", "", b"/#part"),
    ],
)
def test_a_location_of_the_target_leads_back_to_us(prefix: bytes, location: bytes, base: str, path: bytes) -> None:
    """An app that follows it comes back to the same service, by the same way, whichever that is."""
    assert moved(location, prefix, make_endpoint(base)) == prefix + path


@pytest.mark.parametrize("prefix", [b"", b"/user"])
@pytest.mark.parametrize("location", _ELSEWHERE)
def test_other_locations_stay_as_they_are(location: bytes, prefix: bytes) -> None:
    """A location that leads elsewhere, or is relative to the request, is not touched."""
    assert moved(location, prefix) == location


@pytest.mark.parametrize(
    ("authority", "secure", "location"),
    [
        ("user.internal", False, b"http://user.internal:80/x"),
        ("user.internal:80", False, b"http://user.internal/x"),
        ("user.internal", True, b"https://user.internal:443/x"),
        ("user.internal", True, b"https://user.internal./x"),
        ("[::1]:3001", False, b"http://[::1]:3001/x"),
    ],
)
def test_the_default_port_is_the_same_with_and_without_being_named(
    authority: str, secure: bool, location: bytes
) -> None:
    """`http://user` and `http://user:80` are one address, and IPv6 addresses are recognised."""
    assert moved(location, b"", make_endpoint(authority=authority, secure=secure)) == b"/x"


def test_every_endpoint_of_the_service_is_the_service() -> None:
    """A redirect from one endpoint to another one of the same service stays within the service."""
    others = [make_endpoint(), make_endpoint("/v2", authority="10.0.0.2:3001", host="10.0.0.2")]
    assert moved(b"http://10.0.0.2:3001/v2/x", b"/user", *others) == b"/user/x"


@pytest.mark.parametrize("location", [b"http://user.internal:3001//elsewhere.example", b"/api//elsewhere.example"])
def test_no_location_is_made_to_lead_elsewhere(location: bytes) -> None:
    """What would remain must not be read as the name of another host."""
    assert moved(location, b"", make_endpoint("/api" if location.startswith(b"/api") else "")) == location
    assert moved(location, b"/user").startswith(b"/user/")


@pytest.mark.parametrize(
    ("name", "said", "heard"),
    [
        (b"content-location", b"http://user.internal:3001/users/7", b"/user/users/7"),
        (b"refresh", b"5; url=http://user.internal:3001/x", b"5; url=/user/x"),
        (b"refresh", b"0;URL='/x?y=1'", b"0;URL='/user/x?y=1'"),
        (b"refresh", b"5", b"5"),
        (b"link", b'</p?page=2>; rel="next", <http://user.internal:3001/p>; rel=first, <https://else.where/>; rel=up',
         b'</user/p?page=2>; rel="next", </user/p>; rel=first, <https://else.where/>; rel=up'),
    ],
)  # fmt: skip
def test_other_fields_with_addresses(name: bytes, said: bytes, heard: bytes) -> None:
    """Every field that clients follow is treated as `Location` is."""
    call = called(b"/user")
    assert readdressed(name, said, call, call.route.cluster.endpoints[0]) == heard


def test_only_fields_with_addresses_are_touched() -> None:
    """All other fields keep their bytes and their order."""
    call = called(b"/user")
    lines = [b"HTTP/1.1 302 Found\r\n"]
    for name, value in ((b"X-Location", b"/a"), (b"LOCATION", b"/a"), (b"Date", b"/a")):
        lines += (name, b": ", value, b"\r\n")
    expected = list(lines)
    expected[7] = b"/user/a"
    readdress(lines, call, call.route.cluster.endpoints[0], start=1)
    assert lines == expected


# ---------------------------------------------------------------- cookies


def cookie(said: bytes, prefix: bytes = b"/user", **parts: object) -> bytes:
    call = called(prefix, make_endpoint(str(parts.pop("base", ""))), **parts)  # type: ignore[arg-type] # as they are given
    return readdressed(b"set-cookie", said, call, call.route.cluster.endpoints[0])


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"sid=1; Path=/; HttpOnly", b"sid=1; Path=/user; HttpOnly"),
        (b"sid=1;path=/account;Secure", b"sid=1;path=/user/account;Secure"),
        (b"sid=1", b"sid=1"),  # the directory of /user/x
        (b"sid=1; Path=", b"sid=1; Path="),
        (b"path=/; Max-Age=1", b"path=/; Max-Age=1"),  # a cookie of that name
        (b"__Host-sid=1; Path=/; Secure", b"__Host-sid=1; Path=/; Secure"),
        (b"sid=1; Domain=user.internal; Path=/", b"sid=1; Path=/user"),
        (b"sid=1; Domain=.internal", b"sid=1"),
        (b"sid=1; Domain=example.com", b"sid=1; Domain=example.com"),
    ],
)
def test_a_cookie_stays_with_its_service(said: bytes, heard: bytes) -> None:
    """By prefix, a cookie is only sent back to the service that has set it; everything else about it stays."""
    assert cookie(said) == heard


def test_a_cookie_without_path_of_the_service_itself() -> None:
    """The default path of `GET /user` would be the root, and with it every service."""
    assert cookie(b"sid=1", path=b"/?a=1") == b"sid=1; Path=/user"


@pytest.mark.parametrize(
    ("said", "base", "host", "heard"),
    [
        (b"sid=1; Path=/", "", b"127.0.0.1:3001", b"sid=1; Path=/"),
        (b"sid=1; Path=/api/a", "/api", b"127.0.0.1:3001", b"sid=1; Path=/a"),
        (b"sid=1; Path=/api", "/api", b"127.0.0.1:3001", b"sid=1; Path=/"),
        (b"sid=1; Domain=user.internal", "", b"user.internal", b"sid=1; Domain=user.internal"),
        (b"sid=1; Domain=user.internal", "", b"127.0.0.1:3001", b"sid=1"),
    ],
)
def test_a_cookie_in_other_modes(said: bytes, base: str, host: bytes, heard: bytes) -> None:
    """Without a prefix the path is the target's, less its base path; a domain stays where the app calls it by that."""
    assert cookie(said, b"", base=base, host=host) == heard


# ---------------------------------------------------------------- what a target would like us to work on


class Looked(tuple[Endpoint, ...]):
    """Endpoints that count how often they are gone through."""

    times = 0

    def __iter__(self) -> Iterator[Endpoint]:
        self.times += 1
        return super().__iter__()


def test_an_address_is_found_without_a_look_at_every_endpoint() -> None:
    """However many addresses there are in answers, the endpoints are gone through once, and again when they change."""
    endpoints = [make_endpoint(authority=f"user{number}:3001", host=f"10.0.0.{number}") for number in range(20)]
    call = called(b"/user", *endpoints)
    cluster = call.route.cluster
    cluster.endpoints = looked = Looked(cluster.endpoints)
    for host in (b"user19", b"10.0.0.19", b"elsewhere.example"):
        readdressed(b"link", b"<http://%b:3001/x>," % host * 100, call, endpoints[0])
    assert looked.times <= 1
    cluster.replace(endpoints[:2])
    assert relocate(b"http://user1:3001/x", call, endpoints[0]) == b"/user/x"
    assert relocate(b"http://user19:3001/x", call, endpoints[0]) == b"http://user19:3001/x"


def test_of_endpoints_with_one_origin_the_one_that_has_answered_counts() -> None:
    """Two endpoints may differ in nothing but their base path; one that has gone meanwhile is still the service."""
    one, other, gone = make_endpoint("/a"), make_endpoint("/b"), make_endpoint("/c", authority="old:1")
    call = called(b"/user", one, other)
    assert relocate(b"http://user.internal:3001/b/x", call, other) == b"/user/x"
    assert relocate(b"http://user.internal:3001/a/x", call, None) == b"/user/x"
    assert relocate(b"http://old:1/c/x", call, gone) == b"/user/x"


def test_so_many_links_of_an_answer_are_rewritten() -> None:
    """The bound is for the answer, however its links are spread over fields; the others stay as they are."""
    call = called(b"/user")
    lines: list[bytes] = []
    for _ in range(3):
        lines += (b"Link", b": ", b"</x>," * (MOST_LINKS // 2), b"\r\n")
    readdress(lines, call, call.route.cluster.endpoints[0], start=0)
    assert [value.count(b"</user/x>") for value in lines[2::4]] == [MOST_LINKS // 2, MOST_LINKS // 2, 0]
    assert lines[-2] == b"</x>," * (MOST_LINKS // 2)


def test_a_cookie_ends_where_it_is_not_looked_at_any_more() -> None:
    """Attributes behind those that are looked at do not pass as they are: they could give the cookie to every
    service."""
    filler = b";a" * (MOST_ATTRIBUTES - 1)
    assert cookie(b"sid=1%b;Path=/" % filler) == b"sid=1%b;Path=/user" % filler
    assert cookie(b"sid=1%b;a;Path=/" % filler) == b"sid=1%b;a" % filler


@pytest.mark.parametrize("name", [b"link", b"refresh", b"location", b"set-cookie"])
@pytest.mark.parametrize("unit", [b"<", b"<a", b"<>", b" ", b"1", b";", b";path=/", b";domain=1", b"http://"])
def test_an_address_of_any_shape_takes_little_time_to_rewrite(name: bytes, unit: bytes) -> None:
    """The work for a value that a target sends is linear: 60 kB of delimiters stop the event loop for no seconds."""
    call = called(b"/user")
    started = thread_time()
    readdressed(name, unit * (60_000 // len(unit)), call, call.route.cluster.endpoints[0])
    assert thread_time() - started < 0.5
