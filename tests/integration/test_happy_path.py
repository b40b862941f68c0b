"""A call that goes well: what the target sees, and what comes back."""

from __future__ import annotations

import re

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import Client, Target, chunked, echo, exchange, get, plain, raw, request, response


def one_service(target: Target, more: str = "") -> str:
    return f"services:\n  user: {{ url: '{target.url}', {more} }}"


KEYED = """
credentials:
  service-key: {{ header: x-api-key, value: our-secret }}
defaults: {{ auth: service-key }}
services: {{ user: '{}' }}
"""


async def test_a_get_arrives_with_everything_the_contract_names(outrider: Outrider) -> None:
    """The target learns who calls, for which call, with what proof and how much time is left."""
    async with Target(plain()) as target, outrider(KEYED.format(target.url)) as proxy:
        answer = await exchange(proxy.port, get("/user/users/42?full=1", "Accept: */*", "x-user-id: u-7"))
    assert answer.status == 200
    (seen,) = target.seen
    assert (seen.method, seen.path, seen.body) == ("GET", "/users/42?full=1", b"")
    assert seen.get("host") == f"127.0.0.1:{target.port}"
    assert seen.get("accept") == "*/*"
    assert seen.get("x-user-id") == "u-7"
    assert seen.get("x-service-name") == "booking"
    assert seen.get("x-service-id") == "booking-1"
    assert seen.get("x-api-key") == "our-secret"
    assert re.fullmatch(r"1\.1 outrider-[0-9a-f]{8}", seen.get("via") or "")
    assert seen.get("x-outrider-attempt") == "1"
    assert 4900 <= int(seen.get("x-request-timeout-ms") or 0) <= 5000
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", seen.get("x-correlation-id"))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", seen.get("traceparent") or "")
    assert not seen.names() & {"content-length", "transfer-encoding"}


async def test_what_the_app_says_about_the_call_is_kept(outrider: Outrider) -> None:
    """Correlation id, trace context, baggage and user headers of the app arrive as they were sent."""
    sent = {
        "x-correlation-id": "abc-123",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=1",
        "baggage": "k=v",
        "X-User-Email": "a@b.c",
    }
    async with Target(plain()) as target, outrider(one_service(target)) as proxy:
        await exchange(proxy.port, get("/user/x", *(f"{name}: {value}" for name, value in sent.items())))
    for name, value in sent.items():
        assert target.seen[0].get(name) == value
    assert (b"X-User-Email", b"a@b.c") in target.seen[0].headers


async def test_an_unusable_traceparent_is_replaced(outrider: Outrider) -> None:
    """A trace context that no receiver could read does not travel on."""
    async with Target(plain()) as target, outrider(one_service(target)) as proxy:
        await exchange(proxy.port, get("/user/x", "traceparent: 00-" + "0" * 32 + "-" + "0" * 16 + "-00"))
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-0[01]", target.seen[0].get("traceparent") or "")


async def test_hop_by_hop_fields_end_here(outrider: Outrider) -> None:
    """Fields of the connection, and those that Connection names, are not passed on."""
    lines = (
        "Connection: keep-alive, X-Private",
        "X-Private: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eA==",
        "TE: trailers",
        "Trailer: X-T",
        "X-Public: 2",
        "x-outrider-retry: off",
        "x-outrider-timeout: 3s",
    )
    async with Target(plain()) as target, outrider(one_service(target)) as proxy:
        await exchange(proxy.port, get("/user/x", *lines))
    names = target.seen[0].names()
    assert "x-public" in names
    assert not names & {"connection", "x-private", "keep-alive", "proxy-connection", "proxy-authorization"}
    assert not names & {"te", "trailer", "x-outrider-retry", "x-outrider-timeout"}


@pytest.mark.parametrize("line", ["x-api-key: stolen", "X-API-Key: stolen", "x_api_key: stolen"])
async def test_the_credential_of_the_app_is_replaced(outrider: Outrider, line: str) -> None:
    """Whatever the app sends as our credential, under whichever spelling, the target sees only ours."""
    async with Target(plain()) as target, outrider(KEYED.format(target.url)) as proxy:
        await exchange(proxy.port, get("/user/x", line, "Connection: close, x-api-key, x-service-name"))
    assert target.seen[0].get("x-api-key") == "our-secret"
    assert target.seen[0].get("x-service-name") == "booking"
    assert b"stolen" not in target.seen[0].raw


async def test_connections_are_kept_on_both_sides(outrider: Outrider) -> None:
    """Many calls on one connection of the app use one connection to the target."""
    async with Target(plain()) as target, outrider(one_service(target)) as proxy, Client(proxy.port) as client:
        for number in range(20):
            answer = await client.call(get(f"/user/{number}"))
            assert (answer.status, answer.get("connection")) == (200, None)
        assert (target.connections, len(target.seen)) == (1, 20)


@pytest.mark.parametrize("body", [b"", b"x", b'{"a": 1}' * 100, bytes(range(256)) * 300])
async def test_a_body_passes_in_both_directions_unchanged(outrider: Outrider, body: bytes) -> None:
    """The target gets the bytes the app sent, and the app the bytes the target sent, in either framing."""
    async with Target(echo) as target, outrider(one_service(target)) as proxy, Client(proxy.port) as client:
        assert (await client.call(request("POST", "/user/e", body))).body == body
        assert (
            await client.call(request("PUT", "/user/e", None, "Transfer-Encoding: chunked") + chunked(body or b"-"))
        ).body == (body or b"-")
    assert target.seen[0].body == body
    assert target.seen[0].get("content-length") == str(len(body))
    assert target.seen[1].get("transfer-encoding") == "chunked"


async def test_every_way_of_naming_the_service_works(outrider: Outrider) -> None:
    """Dedicated port, header, host name, forward-proxy form and path prefix all reach the same target."""
    config = "services:\n  user: {{ url: '{}', port: 0, hosts: [user-service] }}"
    async with Target(plain()) as target, outrider(config.format(target.url)) as proxy:
        answers = [
            await exchange(proxy.port_of("user"), get("/by/port")),
            await exchange(proxy.port, get("/by/header", "X-Outrider-Service: user")),
            await exchange(proxy.port, get("/by/alias", "dapr-app-id: user")),
            await exchange(proxy.port, get("/by/host", host="user:4100")),
            await exchange(proxy.port, get("/by/localhost", host="USER.localhost:4100")),
            await exchange(proxy.port, get("/by/extra-host", host="user-service")),
            await exchange(proxy.port, get("http://user/by/absolute?q=1", host="user")),
            await exchange(proxy.port, get("http://user-service:80/by/other-absolute", host="elsewhere")),
            await exchange(proxy.port, get("/user/by/prefix")),
            await exchange(proxy.port, get("/user")),
            await exchange(proxy.port, get("/user?q=1")),
        ]
    assert [answer.status for answer in answers] == [200] * 11
    assert [seen.path for seen in target.seen] == [
        "/by/port", "/by/header", "/by/alias", "/by/host", "/by/localhost", "/by/extra-host", "/by/absolute?q=1",
        "/by/other-absolute", "/by/prefix", "/", "/?q=1",
    ]  # fmt: skip
    for seen in target.seen:
        assert seen.get("host") == f"127.0.0.1:{target.port}"
        assert not seen.names() & {"x-outrider-service", "dapr-app-id"}


async def test_the_earlier_way_of_naming_wins(outrider: Outrider) -> None:
    """Dedicated port before header before host before path."""
    config = "services:\n  user: {{ url: '{}', port: 0 }}\n  other: '{}'"
    async with Target(plain(200, b"user")) as user, Target(plain(200, b"other")) as other:
        async with outrider(config.format(user.url, other.url)) as proxy:
            by_port = await exchange(proxy.port_of("user"), get("/other/x", "x-outrider-service: other", host="other"))
            by_header = await exchange(proxy.port, get("/user/x", "x-outrider-service: other", host="user"))
            by_host = await exchange(proxy.port, get("/user/x", host="other"))
    assert (by_port.body, by_header.body, by_host.body) == (b"user", b"other", b"other")
    assert user.seen[0].path == "/other/x"
    assert other.seen[0].path == "/user/x"


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("/user", "/echo"),
        ("/user?n=1", "/echo?n=1"),
        ("/user/", "/echo/"),
        ("/user/?n=1", "/echo/?n=1"),
        ("/user/x", "/echo/x"),
        ("http://127.0.0.1/user", "/echo"),
    ],
)
async def test_the_name_alone_is_the_path_of_its_url(outrider: Outrider, asked: str, got: str) -> None:
    """Without a slash behind the name of the service there is none behind the path of its URL: they are two things."""
    async with Target(plain()) as target, outrider(f"services: {{ user: '{target.url}/echo' }}") as proxy:
        assert (await exchange(proxy.port, get(asked))).status == 200
        assert target.seen[0].path == got


@pytest.mark.parametrize("path", ["/user/a%2Fb/../c;d=1/%zz?x=%20&y=%C3%A9", "/user//double", "/user/a+b?", "/user/*"])
async def test_the_path_is_never_normalised(outrider: Outrider, path: str) -> None:
    """The target gets the path as the app wrote it, less the prefix."""
    async with Target(plain()) as target, outrider(one_service(target)) as proxy:
        await exchange(proxy.port, get(path))
    assert target.seen[0].path == path.removeprefix("/user")


@pytest.mark.parametrize("status", [200, 201, 299, 301, 400, 401, 404, 409, 418, 422, 451, 500, 501, 505, 511, 599])
async def test_an_answer_passes_as_it_is(outrider: Outrider, status: int) -> None:
    """Status, reason, fields and body of the target reach the app untouched, whatever they say."""
    said = response(status, b"\x00\xff the body", "X-One: 1", "x-two:   2  ", "Set-Cookie: a=1", "Set-Cookie: b=2",
                    "Server: t", "ETag: \"x\"", reason="My Own Reason")  # fmt: skip
    async with Target(raw(said)) as target, outrider(one_service(target, "retry: false")) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
    assert (answer.status, answer.reason, answer.body) == (status, "My Own Reason", b"\x00\xff the body")
    assert answer.headers[:7] == [
        (b"Content-Length", b"11"), (b"X-One", b"1"), (b"x-two", b"2"), (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"), (b"Server", b"t"), (b"ETag", b'"x"'),
    ]  # fmt: skip
    assert answer.get("x-outrider-attempts") == "1"
    assert re.fullmatch(r"outrider;dur=\d+\.\d, user;dur=\d+\.\d", answer.get("server-timing") or "")
    assert "proxy-status" not in answer.names()


async def test_the_targets_own_hop_by_hop_fields_end_here(outrider: Outrider) -> None:
    """What the target says about its connection is not told to the app."""
    said = plain(200, b"ok", "Connection: X-Mine, keep-alive", "X-Mine: 1", "Keep-Alive: timeout=9", "X-Yours: 2")
    async with Target(said) as target, outrider(one_service(target)) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
    assert answer.get("x-yours") == "2"
    assert not answer.names() & {"connection", "x-mine", "keep-alive"}


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("/login?next=1", "/user/login?next=1"),
        ("http://{target}/login", "/user/login"),
        ("//elsewhere.test/x", "//elsewhere.test/x"),
        ("https://elsewhere.test/x", "https://elsewhere.test/x"),
        ("relative", "relative"),
    ],
)
async def test_location_is_put_under_the_prefix(outrider: Outrider, said: str, heard: str) -> None:
    """A redirect of the target leads the app back through the prefix it used, and only then."""
    async with Target(plain()) as target, outrider(one_service(target)) as proxy:
        location = said.format(target=f"127.0.0.1:{target.port}")
        target.script(plain(302, b"", "X-First: 1", f"Location: {location}", "X-Last: 1"))
        by_prefix = await exchange(proxy.port, get("/user/x"))
        by_host = await exchange(proxy.port, get("/x", host="user"))
    assert by_prefix.get("location") == heard
    assert by_host.get("location") == (location if "{target}" not in said else "/login")


async def test_a_redirect_leads_back_the_same_way(outrider: Outrider) -> None:
    """An absolute redirect of the target to itself can be followed in every addressing mode: port, header, host and
    forward proxy."""
    async with Target(plain()) as target, outrider(one_service(target, "port: 0")) as proxy:
        target.script(plain(302, b"", f"Location: {target.url}/items/", f"Content-Location: {target.url}/items"))
        answers = {
            "port": await exchange(proxy.port_of("user"), get("/items", host="127.0.0.1")),
            "header": await exchange(proxy.port, get("/items", "x-outrider-service: user")),
            "host": await exchange(proxy.port, get("/items", host="user.localhost:4100")),
            "forward proxy": await exchange(proxy.port, get("http://user/items", host="user")),
        }
    for mode, answer in answers.items():
        assert (answer.get("location"), answer.get("content-location")) == ("/items/", "/items"), mode


async def test_cookies_of_a_service_stay_with_it(outrider: Outrider) -> None:
    """By path prefix, a cookie's path is put under the prefix, so that clients do not send it to other services."""
    async with Target(plain(200, b"", "Set-Cookie: a=1; Path=/; HttpOnly", "Set-Cookie: b=2")) as target:
        async with outrider(one_service(target)) as proxy:
            answer = await exchange(proxy.port, get("/user/login"))
    assert answer.get_all("set-cookie") == ["a=1; Path=/user; HttpOnly", "b=2"]


async def test_a_base_path_stands_before_every_path(outrider: Outrider) -> None:
    """A service URL with a path is where all its calls go, and redirects do not show it."""
    async with Target(plain(302, b"", "Location: /api/v2/next")) as target:
        async with outrider(f"services: {{ user: '{target.url}/api/v2/' }}") as proxy:
            answer = await exchange(proxy.port, get("/user/x?y=1"))
    assert target.seen[0].path == "/api/v2/x?y=1"
    assert answer.get("location") == "/user/next"


@pytest.mark.parametrize("path", ["/../admin", "/a/%2e%2E/admin", "/..;x/admin", "/a/..", "/.%2e%2fadmin"])
async def test_no_path_climbs_out_of_a_base_path(outrider: Outrider, path: str) -> None:
    """A service bound to a base path is refused dot segments, plain or encoded: some reader would normalise them. In a
    query, or as part of a name, dots are just dots."""
    async with Target(plain()) as target:
        async with outrider(f"services: {{ user: '{target.url}/api/v1' }}") as proxy:
            assert (await exchange(proxy.port, get(f"/user{path}"))).status == 400
            assert not target.seen
            assert (await exchange(proxy.port, get("/user/a..b/.well-known?x=/../y"))).status == 200
    assert target.seen[0].path == "/api/v1/a..b/.well-known?x=/../y"


async def test_headers_can_be_set_and_removed(outrider: Outrider) -> None:
    """The configuration may set headers from what it knows of the call, and take off what the app sent."""
    more = (
        "headers: { set: { X-Request-ID: '{request_id}', x-tenant: '{header:x-org}', x-to: '{target}' }, "
        "remove: [x-debug, X-Org] }"
    )
    async with Target(plain()) as target, outrider(one_service(target, more)) as proxy:
        await exchange(proxy.port, get("/user/x", "x-org: acme", "x-debug: 1", "x-to: forged"))
    (seen,) = target.seen
    assert re.fullmatch(r"[0-9a-f-]{36}", seen.get("x-request-id") or "")
    assert (seen.get("x-tenant"), seen.get("x-to"), seen.get("x-service-name")) == ("acme", "user", "booking")
    assert not seen.names() & {"x-debug", "x-org"}


async def test_calls_are_spread_over_endpoints(outrider: Outrider) -> None:
    """Round robin gives every endpoint its share."""
    async with Target(plain()) as one, Target(plain()) as two:
        config = f"services:\n  user: {{ url: ['{one.url}', '{two.url}'], balance: round-robin }}"
        async with outrider(config) as proxy, Client(proxy.port) as client:
            for _ in range(10):
                await client.call(get("/user/x"))
    assert (len(one.seen), len(two.seen)) == (5, 5)


async def test_a_fallback_stands_in_for_a_failing_service(outrider: Outrider) -> None:
    """An app that can live without a service gets the prepared answer, marked as such; 4xx still pass."""
    more = "retry: false, fallback: { status: 202, json: { accepted: true } }"
    async with Target([plain(500), plain(404, b"none")]) as target, outrider(one_service(target, more)) as proxy:
        covered = await exchange(proxy.port, get("/user/x"))
        passed = await exchange(proxy.port, get("/user/x"))
    assert (covered.status, covered.body) == (202, b'{"accepted": true}')
    assert covered.get("x-outrider-degraded") == "static; cause=500"
    assert (passed.status, passed.body) == (404, b"none")
