"""Pages in a browser on this machine may not use the calls port."""

from __future__ import annotations

import json

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import Client, Target, exchange, get, plain, request

ATTACKER = "https://attacker.example"
# What browsers send, by what a page does.
PAGES: dict[str, bytes] = {
    "a form that posts text": request(
        "POST", "/user/x", b"a=b", "content-type: text/plain", f"origin: {ATTACKER}", "sec-fetch-site: cross-site",
        host="127.0.0.1:4100",
    ),
    "a form, in a browser without Fetch Metadata": request(
        "POST", "/user/x", b"a=b", "content-type: text/plain", f"origin: {ATTACKER}", host="127.0.0.1:4100"
    ),
    "a sandboxed frame": request("POST", "/user/x", b"", "origin: null", host="127.0.0.1:4100"),
    "an image": get("/user/x", "sec-fetch-site: cross-site", "sec-fetch-mode: no-cors", host="127.0.0.1:4100"),
    "a page of another port": get("/user/x", "Sec-Fetch-Site: same-site", host="localhost:4100"),
    "a preflight": request(
        "OPTIONS", "/user/x", None, f"origin: {ATTACKER}", "access-control-request-method: PUT", host="localhost:4100"
    ),
    "a WebSocket": get(
        "/user/x", "connection: Upgrade", "upgrade: websocket", f"origin: {ATTACKER}", "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", host="127.0.0.1:4100",
    ),
    "a name that has been rebound": get("/user/x", "user-agent: Mozilla/5.0", host="attacker.example:4100"),
    "a rebound name and our header": get("/x", "x-outrider-service: user", host="attacker.example"),
    "a rebound name that looks like ours": get("/user/x", host="127.0.0.1.attacker.example"),
    "a rebound name, posting to itself": request(
        "POST", "/user/x", b"{}", "origin: http://attacker.example:4100", host="attacker.example:4100"
    ),
    "two sites at once": get("/user/x", "sec-fetch-site: none", "sec-fetch-site: cross-site", host="127.0.0.1"),
}  # fmt: skip

KEYED = """
credentials: {{ k: {{ header: x-api-key, value: ours }} }}
defaults: {{ auth: k }}
services: {{ user: {{ url: '{}', port: 0, hosts: [user.corp.example] }} }}
"""


@pytest.mark.parametrize("case", PAGES)
async def test_a_page_is_refused(outrider: Outrider, case: str) -> None:
    """Whatever it makes the browser send: nothing reaches the service, and the page could not read the answer."""
    async with Target(plain()) as target, outrider(KEYED.format(target.url)) as proxy:
        for port in (proxy.port, proxy.port_of("user")):
            answer = await exchange(port, PAGES[case])
            assert answer.status == 403
            assert json.loads(answer.body)["origin"] == "caller"
            assert "browsers" in json.loads(answer.body)["message"]
            assert not answer.names() & {"access-control-allow-origin", "upgrade"}
    assert not target.seen


# What other clients send.
CLIENTS: dict[str, bytes] = {
    "curl": get("/user/x", "user-agent: curl/8", "accept: */*", host="127.0.0.1:4100"),
    "Node's fetch": get("/user/x", "sec-fetch-mode: cors", "accept-language: *", host="localhost:4100"),
    "IPv6": get("/user/x", host="[::1]:4100"),
    "another address": get("/user/x", host="10.1.2.3:4100"),
    "a name without a dot": get("/user/x", host="sidecar:4100"),
    "the name of the host": get("/user/x", host="host.docker.internal:4100"),
    "the service by its host": get("/x", host="user.localhost:4100"),
    "the service by a name of its own": get("/x", host="USER.corp.example."),
    "the proxy of an app": get("http://user/x", host="user"),
    "the address bar": get("/user/x", "sec-fetch-site: none", "sec-fetch-mode: navigate", host="127.0.0.1:4100"),
    "our own page": get("/user/x", "sec-fetch-site: same-origin", host="127.0.0.1:4100"),
    "Go's WebSocket client": get("/user/x", "origin: http://localhost/", host="127.0.0.1:4100"),
    "an old client without Host": b"GET /user/x HTTP/1.0\r\n\r\n",
}


@pytest.mark.parametrize("case", CLIENTS)
async def test_other_clients_are_not(outrider: Outrider, case: str) -> None:
    """Every way of naming a service goes on working, for who is no page."""
    async with Target(plain()) as target, outrider(KEYED.format(target.url)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(CLIENTS[case])
            assert (await client.answer()).status == 200
    assert target.seen[0].get("x-api-key") == "ours"


async def test_an_unknown_host_of_a_proxied_request_is_an_unknown_service(outrider: Outrider) -> None:
    """An absolute URL is no page's doing; the answer says what is wrong."""
    async with outrider(KEYED.format("http://127.0.0.1:9")) as proxy:
        answer = await exchange(proxy.port, get("http://other.corp.example/x", host="other.corp.example"))
    assert answer.status == 502


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ("pass", []),
        ("{ origins: ['*'], hosts: [attacker.example, 127.0.0.1.attacker.example] }", []),
        (f"{{ origins: ['{ATTACKER}'] }}", ["an image", "a sandboxed frame", "a name that has been rebound"]),
        ("{ hosts: [Attacker.Example] }", ["a form that posts text", "a WebSocket"]),
    ],
)
async def test_an_app_that_passes_browsers_on(outrider: Outrider, settings: str, refused: list[str]) -> None:
    """It says so, or names the pages and the hosts that may."""
    cases = ["a form that posts text", "an image", "a sandboxed frame", "a name that has been rebound"]
    async with Target(plain()) as target:
        async with outrider(f"browsers: {settings}\n{KEYED.format(target.url)}") as proxy:
            for case in [*cases, *refused]:
                answer = await exchange(proxy.port, PAGES[case])
                expected = case in refused or ("hosts: [Att" in settings and case != "a name that has been rebound")
                assert answer.status == (403 if expected else 200), case


async def test_the_guard_takes_browsers(outrider: Outrider) -> None:
    """Who calls from outside may be a browser, by any name of ours."""
    async with Target(plain()) as app:
        text = f"inbound: {{ listen: '127.0.0.1:0', app: '{app.url}', protect: [] }}\n"
        async with outrider(text + "services: { other: 'http://127.0.0.1:9' }") as proxy:
            for case in ("a form that posts text", "a name that has been rebound"):
                assert (await exchange(proxy.app.ports["inbound.listen"], PAGES[case])).status == 200
