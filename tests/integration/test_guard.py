"""The guard on real sockets: who it lets in over TLS, certificates that change under load, and what its answers say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest

from outrider.controlplane import certificates
from tests.integration.conftest import Outrider
from tests.integration.harness import Client, Exchange, Target, eventually, exchange, get, plain, response
from tests.integration.load import under_load
from tests.integration.test_tls import Authority, trusting

KEY = "key-of-the-platform-0123456789abcdef"


def guard(app: Target, accept: str, tls: str = "", more: str = "") -> str:
    return f"""
inbound:
  listen: 127.0.0.1:0
  app: '{app.url}'
  accept: [{accept}]
  {f"tls: {{ {tls} }}" if tls else ""}
  {more}
services: {{ other: 'http://127.0.0.1:9' }}
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_key_does_where_certificates_do_too(outrider: Outrider, authority: Authority) -> None:
    """Any one of the proofs is enough; with none of them the caller is refused by the guard, not by TLS."""
    cert, key = authority.files("guard", "localhost")
    tls = f"cert: {cert}, key: {key}, client_ca: {authority.file}"
    accept = f"{{ certificate: [caller.internal] }}, {{ header: x-api-key, values: [{KEY}], caller: web }}"
    async with Target(plain()) as app, outrider(guard(app, accept, tls)) as proxy:
        port = proxy.app.ports["inbound.listen"]
        known = trusting(authority)
        authority.ca.issue_cert("caller.internal").configure_cert(known)
        other = trusting(authority)
        authority.ca.issue_cert("other.internal").configure_cert(other)
        asked = [
            (known, [], 200, "caller.internal"),
            (trusting(authority), [f"X-Api-Key: {KEY}"], 200, "web"),
            (other, [f"X-Api-Key: {KEY}"], 200, "web"),
            (trusting(authority), [], 401, None),
            (other, [], 401, None),
        ]
        for context, lines, status, caller in asked:
            async with Client(port, tls=context) as client:
                assert (await client.call(get("/x", *lines))).status == status
            assert caller is None or app.seen[-1].get("x-outrider-caller") == caller
        assert len(app.seen) == 3


async def test_where_only_certificates_count_tls_insists(outrider: Outrider, authority: Authority) -> None:
    """Also for what is not protected: what was closed to everybody without a certificate stays closed."""
    cert, key = authority.files("guard", "localhost")
    tls = f"cert: {cert}, key: {key}, client_ca: {authority.file}"
    async with Target(plain()) as app:
        text = guard(app, "{ certificate: [caller.internal] }", tls, more='protect: ["/internal/**"]')
        async with outrider(text) as proxy:
            with pytest.raises(Exception):  # noqa: B017 # TLS ends it in one of several ways
                async with Client(proxy.app.ports["inbound.listen"], tls=trusting(authority)) as client:
                    await client.call(get("/public"))
        assert not app.seen


async def test_all_certificates_change_under_load(
    outrider: Outrider, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Authority, the guard's certificate and the caller's are replaced in the usual order while calls go on: none of
    them fails, and in the end nothing of the old authority is trusted."""
    monkeypatch.setattr(certificates, "_INTERVAL", 0.02)
    (tmp_path / "fresh").mkdir()
    fresh = Authority(tmp_path / "fresh")
    guard_files, caller_files = authority.files("guard", "localhost"), authority.files("caller", "caller.internal")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.file.read_bytes())
    tls = f"cert: {guard_files[0]}, key: {guard_files[1]}, client_ca: {trusted}"
    async with Target(plain()) as app, outrider(guard(app, "{ certificate: [caller.internal] }", tls)) as receiver:
        port = receiver.app.ports["inbound.listen"]
        text = f"""
services:
  user:
    url: 'https://localhost:{port}'
    idle_timeout: 20ms
    tls: {{ ca: {trusted}, cert: {caller_files[0]}, key: {caller_files[1]} }}
"""
        async with outrider(text) as caller:

            async def seen_by_both(contents: dict[Path, bytes]) -> None:
                """Write files, and wait until both sidecars use them."""
                watched = [
                    one for proxy in (receiver, caller) for one in proxy.app.runtime.compiled.certificates._watched
                ]
                for file, content in contents.items():
                    file.write_bytes(content)
                wanted = {str(file): content for file, content in contents.items()}
                await eventually(
                    lambda: all(one.contents.get(file, new) == new for one in watched for file, new in wanted.items())
                )
                await asyncio.sleep(0.05)  # for connections made before that to be used, and to end

            async with under_load(caller.port, 4, lambda number: get("/user/x")) as tally:
                await asyncio.sleep(0.05)
                await seen_by_both({trusted: authority.file.read_bytes() + fresh.file.read_bytes()})
                new_guard, new_caller = fresh.files("guard", "localhost"), fresh.files("caller", "caller.internal")
                await seen_by_both({old: new.read_bytes() for old, new in zip(guard_files, new_guard, strict=True)})
                await seen_by_both({old: new.read_bytes() for old, new in zip(caller_files, new_caller, strict=True)})
                await seen_by_both({trusted: fresh.file.read_bytes()})
            assert tally.failed == 0
            assert tally.count > 50
            assert {seen.get("x-outrider-caller") for seen in app.seen} == {"caller.internal"}
        old = trusting(fresh)
        authority.ca.issue_cert("caller.internal").configure_cert(old)
        with pytest.raises(Exception):  # noqa: B017 # TLS ends it in one of several ways
            async with Client(port, tls=old) as client:
                await client.call(get("/x"))


async def test_answers_and_log_name_the_service(outrider: Outrider, caplog: pytest.LogCaptureFixture) -> None:
    """What the guard refuses or cannot pass on is told in the name of the service it stands before."""
    async with Target(plain()) as app:
        text = guard(app, f"{{ header: x-api-key, values: [{KEY}], caller: web }}", more="rate_limit: { rate: 1/m }")
        async with outrider("service: payment-service\n" + text) as proxy:
            port = proxy.app.ports["inbound.listen"]
            key = f"X-Api-Key: {KEY}"
            answers = [await exchange(port, get("/x", *lines)) for lines in ([], [key], [key])]
    assert [answer.status for answer in answers] == [401, 200, 429]
    refused: list[dict[str, Any]] = [json.loads(answer.body) for answer in answers if answer.status != 200]
    assert {one["service"] for one in refused} == {"payment-service"}
    assert "payment-service" in refused[1]["detail"]
    logged = [cast(Any, record).fields for record in caplog.records if record.getMessage() == "call"]
    assert {(one["direction"], one["service"]) for one in logged} == {("inbound", "payment-service")}
    assert [one.get("caller") for one in logged] == [None, "web"]


async def redirecting(one: Exchange) -> None:
    """An app that makes absolute redirects by the Host it gets, as most frameworks do, or by its own idea of itself."""
    await one.body()
    host = one.request.get("host") if one.request.path == "/items" else f"127.0.0.1:{one.target.port}"
    await one.send(response(307, b"", f"Location: http://{host}/items/"))


async def test_redirects_through_the_guard_can_be_followed(outrider: Outrider) -> None:
    """The app gets the caller's Host, so that its redirects lead to where the caller called; one to the app's own
    address is made relative."""
    async with Target(redirecting) as app, outrider(guard(app, "", more="protect: []")) as proxy:
        port = proxy.app.ports["inbound.listen"]
        by_host = await exchange(port, get("/items", host="api.example.com"))
        by_itself = await exchange(port, get("/other", host="api.example.com"))
        absolute = await exchange(port, get("http://public.example.com/items", host="api.example.com"))
    assert by_host.get("location") == "http://api.example.com/items/"
    assert by_itself.get("location") == "/items/"
    assert absolute.get("location") == "http://public.example.com/items/"


async def test_the_app_is_told_who_has_called_the_guard(outrider: Outrider) -> None:
    """Frameworks believe X-Forwarded-* from loopback: those of a stranger are replaced by the guard's own, and those
    of a proven caller are continued. `remove` writes none, `pass` leaves all as they are."""
    claims = ("X-Forwarded-For: 10.9.9.9", "X-Forwarded-Proto: https", "X-Real-IP: 10.9.9.9", "Forwarded: for=10.9.9.9")
    accept = f"{{ header: x-api-key, values: [{KEY}], caller: gateway }}"
    names = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded")
    told = {}
    for mode in ("add", "remove", "pass"):
        async with Target(plain()) as app:
            text = guard(app, accept, more=f"protect: [/internal]\n  forwarded: {mode}")
            async with outrider(text) as proxy:
                for who, lines in (("stranger", claims), ("gateway", (*claims, f"X-Api-Key: {KEY}"))):
                    await exchange(proxy.app.ports["inbound.listen"], get("/x", *lines, host="api.test"))
                    told[mode, who] = [app.seen[-1].get(name) for name in names]
    sent = ["10.9.9.9", "https", None, "10.9.9.9", "for=10.9.9.9"]
    assert told == {
        ("add", "stranger"): ["127.0.0.1", "http", "api.test", None, None],
        ("add", "gateway"): ["10.9.9.9, 127.0.0.1", "https", "api.test", "10.9.9.9", "for=10.9.9.9"],
        ("remove", "stranger"): [None] * 5,
        ("remove", "gateway"): sent,
        ("pass", "stranger"): sent,
        ("pass", "gateway"): sent,
    }


async def test_the_app_may_get_its_own_host(outrider: Outrider) -> None:
    """With `host: app` the app is called by its own name, and its redirects still lead back to the guard."""
    async with Target(redirecting) as app, outrider(guard(app, "", more="protect: []\n  host: app")) as proxy:
        answer = await exchange(proxy.app.ports["inbound.listen"], get("/items", host="api.example.com"))
    assert app.seen[0].get("host") == f"127.0.0.1:{app.port}"
    assert answer.get("location") == "/items/"
