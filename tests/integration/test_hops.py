"""What RFC 9110 asks of a proxy on the way: Date, Via, Max-Forwards, and care with authenticated connections."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from time import time

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import Client, Target, exchange, get, plain, request

_NAME = re.compile(r"outrider-[0-9a-f]{8}")


def one_service(target: Target, more: str = "") -> str:
    return f"services:\n  user: {{ url: '{target.url}', {more} }}"


async def test_every_answer_has_a_date(outrider: Outrider) -> None:
    """An answer of ours, or of a target that sends no Date, says when it was made; the Date of a target stays."""
    theirs = "Tue, 01 Jan 2030 00:00:00 GMT"
    async with Target([plain(), plain(200, b"", f"Date: {theirs}")]) as target:
        async with outrider(one_service(target)) as proxy:
            ours = [await exchange(proxy.port, get("/user/x")), await exchange(proxy.port, get("/nobody/x"))]
            kept = await exchange(proxy.port, get("/user/x"))
    for answer in ours:
        assert abs(parsedate_to_datetime(answer.get("date") or "").timestamp() - time()) < 3
    assert kept.get_all("date") == [theirs]


async def test_a_loop_over_two_sidecars_ends_at_once(outrider: Outrider) -> None:
    """A call that comes back to a sidecar by the port it went out from is 508, and nothing is retried."""
    async with Target(plain()) as target:
        async with outrider(one_service(target, "port: 0")) as first:
            text = f"services: {{ user: 'http://127.0.0.1:{first.port_of('user')}' }}"
            async with outrider(text) as second:
                good = await exchange(second.port, get("/user/x"))
                endpoint = first.app.runtime.compiled.clusters[0].endpoints[0]
                endpoint.pool.close()
                endpoint.detour = ("127.0.0.1", second.port)
                endpoint.base_path = b"/user"
                caught = await exchange(second.port, get("/user/x"))
    assert good.status == 200
    assert len(set(_NAME.findall(" ".join(target.seen[0].get_all("via"))))) == 2
    assert caught.status == 508
    assert b'"error": "LOOP_DETECTED"' in caught.body
    assert b'"retryable": false' in caught.body
    assert "proxy_loop_detected" in (caught.get("proxy-status") or "")
    assert caught.get("x-outrider-attempts") == "1"


OURS = [b"x-outrider-attempt", b"x-outrider-critical"]


async def test_what_is_said_in_our_name_and_has_no_meaning_goes_no_further(outrider: Outrider) -> None:
    """The app's own calls drop it, too, however it is spelled; that a call is not critical reaches the target."""
    said = ("x-outrider-anything: 1", "X_Outrider_Other: 2", "X-Outrider-Caller: me", "x-outrider-critical: false")
    async with Target(plain()) as target, outrider(one_service(target)) as proxy:
        for _ in range(2):
            await exchange(proxy.port, get("/user/x", *said))
    for seen in target.seen:
        assert sorted(name for name, _ in seen.headers if "outrider" in str(name).lower()) == OURS


async def test_an_app_that_passes_via_on_may_call_another_service(outrider: Outrider) -> None:
    """Called back by the service that it has called, it calls a third one: no loop. The same service again is one."""
    async with Target(plain()) as target:
        text = f"services: {{ user: '{target.url}', payment: '{target.url}' }}"
        async with outrider(text) as proxy:
            await exchange(proxy.port, get("/user/x"))
            passed_on = f"Via: {target.seen[0].get('via')}, 1.1 user-gateway"
            other = await exchange(proxy.port, get("/payment/x", passed_on))
            same = await exchange(proxy.port, get("/user/y", passed_on))
            both = await exchange(proxy.port, get("/user/y", f"Via: {', '.join(target.seen[1].get_all('via'))}"))
    assert (other.status, same.status, both.status) == (200, 508, 508)
    assert len(target.seen) == 2


async def test_out_and_in_through_one_sidecar_is_no_loop(outrider: Outrider) -> None:
    """An app may call itself by way of its own sidecar: out through the calls port, in through the guard."""
    async with Target(plain()) as app:
        inbound = f"inbound: {{ listen: '127.0.0.1:0', app: '{app.url}', protect: [] }}"
        text = f"{inbound}\nservices: {{ me: 'http://127.0.0.1:9' }}"
        async with outrider(text) as proxy:
            endpoint = next(one for one in proxy.app.runtime.compiled.clusters if one.name == "me").endpoints[0]
            endpoint.port = proxy.app.ports["inbound.listen"]
            answer = await exchange(proxy.port, get("/me/x"))
    assert answer.status == 200
    assert len(set(_NAME.findall(" ".join(app.seen[0].get_all("via"))))) == 2


@pytest.mark.parametrize(
    ("method", "sent", "status", "received"),
    [
        ("OPTIONS", "0", 200, None),
        ("OPTIONS", "3", 200, "2"),
        ("OPTIONS", "00", 200, None),
        ("OPTIONS", "many", 200, "many"),
        ("GET", "0", 200, "0"),
    ],
)
async def test_max_forwards(outrider: Outrider, method: str, sent: str, status: int, received: str | None) -> None:
    """OPTIONS goes no further than it may, and is counted down on the way; other methods may ignore the field."""
    async with Target(plain()) as target, outrider(one_service(target)) as proxy:
        answer = await exchange(proxy.port, request(method, "/user/x", None, f"Max-Forwards: {sent}"))
        assert answer.status == status
        assert [seen.get("max-forwards") for seen in target.seen] == ([received] if received is not None else [])
        assert proxy.outcomes() == {"ok": 1}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        pytest.param((), ("WWW-Authenticate: Negotiate",), id="offered"),
        pytest.param((), ("WWW-Authenticate: Basic realm=x, NTLM TlRMTVNT",), id="one of several"),
        pytest.param(("Authorization: Negotiate YII=",), (), id="used"),
        pytest.param(("Authorization: ntlm TlRM",), (), id="in lower case"),
    ],
)
async def test_a_connection_that_belongs_to_a_user_is_used_once(
    outrider: Outrider, asked: tuple[str, ...], said: tuple[str, ...]
) -> None:
    """NTLM and Negotiate prove who somebody is for a whole connection, so such a connection is not used again."""
    async with Target([plain(401, b"", *said), plain()]) as target, outrider(one_service(target)) as proxy:
        async with Client(proxy.port) as client, Client(proxy.port) as another:
            await client.call(get("/user/x", *asked))
            await another.call(get("/user/x"))
            await another.call(get("/user/x"))
    assert [seen.connection for seen in target.seen] == [1, 2, 2]


async def test_other_proofs_leave_connections_alone(outrider: Outrider) -> None:
    """Bearer and Basic are for one request, so the connection is used again."""
    async with Target(plain(401, b"", "WWW-Authenticate: Basic realm=negotiate")) as target:
        async with outrider(one_service(target)) as proxy, Client(proxy.port) as client:
            for _ in range(2):
                await client.call(get("/user/x", "Authorization: Bearer negotiate"))
    assert [seen.connection for seen in target.seen] == [1, 1]


async def test_an_answer_from_memory_has_one_date(outrider: Outrider) -> None:
    """An earlier answer that stands in keeps the Date it came with."""
    theirs = "Tue, 01 Jan 2030 00:00:00 GMT"
    more = "retry: false, circuit_breaker: false, fallback: last-good"
    async with Target([plain(200, b"ok", f"Date: {theirs}"), plain(503, b"")]) as target:
        async with outrider(one_service(target, more)) as proxy:
            await exchange(proxy.port, get("/user/x"))
            answer = await exchange(proxy.port, get("/user/x"))
    assert (answer.status, answer.get_all("date")) == (200, [theirs])
