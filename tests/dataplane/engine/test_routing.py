"""Routing: which service a request is for, in the documented order, with its path untouched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.engine.routing import Route, RouteTable, Service, bare_host, split_absolute
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Request
from outrider.model.patterns import PathPattern
from tests.fakes import make_cluster, make_route

HERE = b"127.0.0.1:4100"


def make_service(name: str, *declared: str) -> Service:
    """A service whose routes are named after their patterns."""
    cluster = make_cluster(name)
    routes = [(PathPattern(text), make_route(cluster, name=text)) for text in declared]
    return Service(name, make_route(cluster), routes)


@pytest.fixture
def table() -> RouteTable:
    user, payment = make_service("user"), make_service("payment")
    return RouteTable(
        services={b"user": user, b"payment": payment},
        hosts={b"user": user, b"payment": payment, b"users.internal": user},
    )


def find(
    table: RouteTable, target: bytes, host: bytes | None = HERE, dedicated: Service | None = None, **noted: str
) -> tuple[str, bytes, bytes]:
    """`(service, path, prefix)`; keyword arguments are headers with underscores for dashes."""
    match = table.resolve(make_request(target, host, **noted), dedicated)
    assert not isinstance(match, Failure), match.detail
    service, path, prefix = match
    return service.name, path, prefix


def refusal(table: RouteTable, target: bytes, host: bytes | None = HERE, **noted: str) -> Failure:
    match = table.resolve(make_request(target, host, **noted), None)
    assert isinstance(match, Failure)
    return match


def make_request(target: bytes, host: bytes | None, **noted: str) -> Request:
    request = Request(target)
    request.method = b"GET"
    if host is not None:
        request.noted[b"host"] = host
    for name, value in noted.items():
        request.noted[name.replace("_", "-").encode()] = value.encode()
    return request


# ---------------------------------------------------------------- the addressing modes


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/user/internal/users/1", b"/internal/users/1"),
        (b"/user/", b"/"),
        (b"/user", b"/"),
        (b"/user?q=1", b"/?q=1"),
        (b"/user?next=/a/b", b"/?next=/a/b"),
        (b"/user/x?a=/b", b"/x?a=/b"),
        (b"/user//x", b"//x"),
    ],
)
def test_first_path_segment(table: RouteTable, target: bytes, path: bytes) -> None:
    """The first segment names the service and is taken off; the rest stays as it was written."""
    assert find(table, target) == ("user", path, b"/user")


@pytest.mark.parametrize("header", ["x_outrider_service", "dapr_app_id"])
def test_header(table: RouteTable, header: str) -> None:
    """A header names the service; the path is left whole, and case does not matter."""
    assert find(table, b"/payment/x", **{header: "User"}) == ("user", b"/payment/x", b"")


def test_our_header_comes_before_the_alias(table: RouteTable) -> None:
    """With both headers, Outrider's own is believed."""
    assert find(table, b"/x", x_outrider_service="user", dapr_app_id="payment")[0] == "user"


def test_header_without_a_host(table: RouteTable) -> None:
    """HTTP/1.0 knows no Host; the header still names the service."""
    assert find(table, b"/x", host=None, x_outrider_service="user") == ("user", b"/x", b"")


@pytest.mark.parametrize(
    "host",
    [b"user", b"user:80", b"USER", b"user.", b"user.localhost:4100", b"User.LOCALHOST", b"users.internal"],
)
def test_host(table: RouteTable, host: bytes) -> None:
    """A service name, `<name>.localhost` or a declared host, with or without port, in any case."""
    assert find(table, b"/payment/x", host) == ("user", b"/payment/x", b"")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://user/x", b"/x"),
        (b"http://user:3001/x?y=1", b"/x?y=1"),
        (b"http://users.internal", b"/"),
        (b"http://user.localhost?y=1", b"/?y=1"),
        (b"HTTP://user/a//b/../c", b"/a//b/../c"),
    ],
)
def test_absolute_form(table: RouteTable, target: bytes, path: bytes) -> None:
    """As a forward proxy: the authority names the service, whatever Host says (RFC 9112 §3.2.2)."""
    assert find(table, target, b"payment") == ("user", path, b"")


def test_absolute_form_addressed_to_us(table: RouteTable) -> None:
    """An absolute URL of our own address falls through to the path."""
    for authority in (b"127.0.0.1:4100", b"localhost:4100", b"[::1]:4100"):
        assert find(table, b"http://" + authority + b"/user/x") == ("user", b"/x", b"/user")


def test_a_dedicated_port(table: RouteTable) -> None:
    """What comes in on a service's own port is for that service, with its path whole."""
    user = table.services[b"user"]
    assert find(table, b"/payment/x", dedicated=user) == ("user", b"/payment/x", b"")


# ---------------------------------------------------------------- their order


def test_a_dedicated_port_comes_first(table: RouteTable) -> None:
    """Neither header nor host nor authority moves a call away from a dedicated port."""
    user = table.services[b"user"]
    assert find(table, b"/payment/x", b"payment", user, x_outrider_service="payment")[0] == "user"
    assert find(table, b"http://payment/x", dedicated=user) == ("user", b"/x", b"")
    assert find(table, b"http://elsewhere.example/x", dedicated=user) == ("user", b"/x", b"")


@pytest.mark.parametrize("target", [b"/payment/x", b"http://payment/x", b"http://elsewhere.example/x"])
def test_the_header_comes_before_host_authority_and_path(table: RouteTable, target: bytes) -> None:
    """A request that names its service in the header goes there."""
    assert find(table, target, b"payment", x_outrider_service="user")[0] == "user"


def test_the_host_comes_before_the_path(table: RouteTable) -> None:
    """A Host that is a service name wins over the first path segment."""
    assert find(table, b"/payment/x", b"user.localhost") == ("user", b"/payment/x", b"")


def test_an_unknown_host_leaves_it_to_the_path(table: RouteTable) -> None:
    """A Host that means nothing here is no reason to refuse."""
    for _ in range(2):
        assert find(table, b"/user/x", b"some-pod:4100") == ("user", b"/x", b"/user")


def test_many_hosts_do_not_change_the_answer(table: RouteTable) -> None:
    """However many Host values come by, known and unknown ones are still told apart."""
    for number in range(600):
        assert find(table, b"/payment/x", b"host-%d" % number)[0] == "payment"
    assert find(table, b"/x", b"user.localhost:1")[0] == "user"
    assert find(table, b"/payment/x", b"host-599")[0] == "payment"


# ---------------------------------------------------------------- nobody we know


@pytest.mark.parametrize(
    ("target", "noted", "named"),
    [
        (b"/usr/x", {}, "usr"),
        (b"/usr", {}, "usr"),
        (b"/usr?secret=1", {}, "usr"),
        (b"/usr?secret=/1", {}, "usr"),
        (b"/", {}, ""),
        (b"/USER/x", {}, "USER"),
        (b"/%75ser/x", {}, "%75ser"),
        (b"/user%2Fx", {}, "user%2Fx"),
        (b"//user/x", {}, ""),
        (b"/x", {"x_outrider_service": "usr"}, "usr"),
        (b"http://usr.example/user/x", {}, "usr.example"),
        (b"*", {}, ""),
    ],
)
def test_an_unknown_service_is_a_502_that_names_the_known_ones(
    table: RouteTable, target: bytes, noted: dict[str, str], named: str
) -> None:
    """Never 404, which an app reads as "no such user"; the answer says what it was asked for and what there is."""
    failure = refusal(table, target, **noted)
    assert failure.kind is Kind.UNKNOWN_SERVICE
    assert failure.kind.status == 502
    assert f'no service "{named}"; the configuration knows: payment, user.' in failure.detail


def test_a_lost_base_path_gets_a_hint(table: RouteTable) -> None:
    """A path that names nobody is often a client library's doing; the answer tells the way out."""
    assert "services.payment.port" in refusal(table, b"/internal/users").detail
    assert "port" not in refusal(table, b"/x", x_outrider_service="usr").detail


def test_without_services_the_answer_says_none() -> None:
    """An empty table refuses everything, and says why."""
    assert "knows: none." in refusal(RouteTable(), b"/user/x").detail


def test_a_long_name_is_cut() -> None:
    """A name of any length makes a short answer."""
    assert len(refusal(RouteTable(), b"/" + b"x" * 60_000).detail) < 300


# ---------------------------------------------------------------- the path is the app's


@pytest.mark.parametrize(
    "path",
    [
        b"/a%2Fb",
        b"/a/../b",
        b"/./a",
        b"/..",
        b"/../payment/x",
        b"/a//b",
        b"/%2e%2e/x",
        b"/a;p=1",
        b"/a?b=%2F#",
        b"/%zz",
    ],
)
def test_paths_are_forwarded_unchanged(table: RouteTable, path: bytes) -> None:
    """Encoded slashes, dot segments and oddities reach the target as the app wrote them, in every mode."""
    user = table.services[b"user"]
    assert find(table, b"/user" + path) == ("user", path, b"/user")
    assert find(table, path, x_outrider_service="user") == ("user", path, b"")
    assert find(table, path, b"user.localhost") == ("user", path, b"")
    assert find(table, b"http://user" + path) == ("user", path, b"")
    assert find(table, path, dedicated=user) == ("user", path, b"")


@given(st.text(alphabet="abu/.%?&=;2F~", max_size=30))
def test_prefix_and_path_make_the_target_again(rest: str) -> None:
    """Nothing is lost between the prefix taken off and the path passed on, except an empty path made `/`."""
    table = RouteTable(services={b"user": make_service("user")})
    target = b"/user/" + rest.encode()
    _, path, prefix = find(table, target)
    assert prefix + path == target


# ---------------------------------------------------------------- routes of a service


def names(service: Service, *requests: tuple[bytes, bytes]) -> list[str]:
    return [service.route_for(method, path).name for method, path in requests]


def test_the_first_declared_route_that_matches_wins() -> None:
    """Patterns are asked in order; what none of them means gets the default route."""
    service = make_service("user", "GET /users/{id}", "* /users/**", "GET /users/me")
    assert names(service, (b"GET", b"/users/me"), (b"POST", b"/users/me"), (b"GET", b"/other")) == [
        "GET /users/{id}",
        "* /users/**",
        "*",
    ]


@pytest.mark.parametrize(
    ("pattern", "method", "path", "matches"),
    [
        ("GET /users", b"GET", b"/users", True),
        ("GET /users", b"POST", b"/users", False),
        ("GET /users", b"GET", b"/users/", False),
        ("GET /users", b"GET", b"/users?page=2", True),
        ("GET|HEAD /users", b"HEAD", b"/users", True),
        ("* /users/{id}", b"PATCH", b"/users/7", True),
        ("GET /users/{id}", b"GET", b"/users/7/orders", False),
        ("GET /users/{id}", b"GET", b"/users/", False),
        ("GET /users/*/orders", b"GET", b"/users/7/orders", True),
        ("GET /users/**", b"GET", b"/users", True),
        ("GET /users/**", b"GET", b"/users/7/orders", True),
        ("GET /users/**", b"GET", b"/usersx", False),
        ("GET /a.b", b"GET", b"/axb", False),
        ("GET /users/{id}", b"GET", b"/users/a%2Fb", True),
    ],
)
def test_patterns(pattern: str, method: bytes, path: bytes, matches: bool) -> None:
    """A pattern means its methods and its path, segment by segment, without the query."""
    service = make_service("user", pattern)
    assert names(service, (method, path)) == [pattern if matches else "*"]


def test_a_route_knows_its_server_timing_name() -> None:
    """The name under which `Server-Timing` tells the target's share is the service's."""
    route: Route = make_service("user").default
    assert route.timing_name == b", user;dur="


# ---------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://user/x", (b"user", b"/x")),
        (b"http://user:80", (b"user:80", b"/")),
        (b"http://user?a=/b", (b"user", b"/?a=/b")),
        (b"http://[::1]:80/x", (b"[::1]:80", b"/x")),
        (b"*", (b"", b"*")),
    ],
)
def test_split_absolute(target: bytes, expected: tuple[bytes, bytes]) -> None:
    """Authority and origin-form of an absolute target; `*` stays `*`."""
    assert split_absolute(target) == expected


@pytest.mark.parametrize(
    ("authority", "expected"),
    [(b"User:80", b"user"), (b"user.", b"user"), (b"user.:80", b"user"), (b"[::1]:80", b"[::1]"), (b"", b"")],
)
def test_bare_host(authority: bytes, expected: bytes) -> None:
    """The host alone, in lower case."""
    assert bare_host(authority) == expected
