"""Keys that change while calls go on: files, key sets, issuers, and the old key for those who still want it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    Exchange,
    Sidecar,
    Target,
    chunked,
    eventually,
    exchange,
    get,
    plain,
    request,
    response,
)
from tests.integration.load import under_load

NOBODY_ELSE = "services: { other: 'http://127.0.0.1:9' }\n"
OLD, NEW = "old-key-0123456789abcdef0123456789", "new-key-0123456789abcdef0123456789"


def wants(*keys: str) -> Action:
    """A target that takes these keys and no others."""

    async def act(one: Exchange) -> None:
        await one.body()
        await one.send(response(200 if one.request.get("x-api-key") in keys else 401))

    return act


async def rotate(proxy: Sidecar) -> dict[str, dict[str, object]]:
    """Have all keys read again; what `outrider keys` shows."""
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{proxy.admin}/api/v1/keys/rotate"
        async with session.post(url, headers={"x-outrider": "1"}) as answer:
            assert answer.status == 200
            shown: dict[str, dict[str, object]] = (await answer.json())["keys"]
            return shown


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_receiver_that_is_late_gets_the_old_key(outrider: Outrider, tmp_path: Path, method: str) -> None:
    """After a rotation a 401 is asked again with the key before, whatever the method, once, and it is counted."""
    file = tmp_path / "key"
    file.write_text(OLD)
    text = f"credentials: {{ k: {{ header: x-api-key, value: '${{file:{file}}}' }} }}\n"
    async with Target(wants(OLD)) as target:
        async with outrider(text + f"services: {{ user: {{ url: '{target.url}', auth: k }} }}") as proxy:
            data = request(method, "/user/x", b"charge" if method == "POST" else None)
            assert (await exchange(proxy.port, data)).status == 200
            file.write_text(NEW)
            assert (await rotate(proxy))["k"]["source"] == "watched"
            assert (await exchange(proxy.port, data)).status == 200
            assert [seen.get("x-api-key") for seen in target.seen] == [OLD, NEW, OLD]
            assert (await rotate(proxy))["k"]["old_uses"] == 1
            target.script(wants(NEW))
            assert (await exchange(proxy.port, data)).status == 200
            target.script(wants())
            assert (await exchange(proxy.port, data)).status == 401
            assert len(target.seen) == 6


async def test_a_receiver_that_stays_late_fails_no_call(outrider: Outrider, tmp_path: Path) -> None:
    """However many calls need the key before: the retry budget is for faults, and this is none."""
    file = tmp_path / "key"
    file.write_text(OLD)
    text = f"credentials: {{ k: {{ header: x-api-key, value: '${{file:{file}}}' }} }}\n"
    async with Target(wants(OLD)) as target:
        async with outrider(text + f"services: {{ user: {{ url: '{target.url}', auth: k }} }}") as proxy:
            file.write_text(NEW)
            await rotate(proxy)
            for _ in range(60):
                assert (await exchange(proxy.port, get("/user/x"))).status == 200
            assert len(target.seen) == 120


@dataclass
class Rotation:
    """What a caller sends and what its guard takes: three files, and calls that go on while these change."""

    sent: Path
    taken: Path
    next_: Path

    @classmethod
    def beginning(cls, folder: Path, next_: str) -> Rotation:
        """Both sides have the old key; the guard has room for another one."""
        made = cls(*(folder / name for name in ("sent", "taken", "next")))
        for file, value in ((made.sent, OLD), (made.taken, OLD), (made.next_, next_)):
            file.write_text(value)
        return made

    @asynccontextmanager
    async def through(self, outrider: Outrider, accept: str, credential: str) -> AsyncIterator[tuple[Sidecar, Sidecar]]:
        """A guard and its caller, whose keys have changed one after the other, in either order: not one call fails."""
        text = f"service: user\ninbound: {{ listen: 127.0.0.1:0, app: '%s', accept: [{accept}] }}\n"
        async with Target(plain()) as app, outrider(text % app.url + NOBODY_ELSE) as receiver:
            url = f"http://127.0.0.1:{receiver.app.ports['inbound.listen']}"
            text = f"credentials: {{ k: {credential} }}\n"
            text += f"services: {{ user: {{ url: '{url}', auth: k, retry: false }} }}"
            async with outrider(text) as caller:
                async with under_load(caller.port, 8, lambda number: get("/user/x")) as tally:
                    for file, value, who in (
                        (self.next_, NEW, receiver),  # the guard takes both
                        (self.sent, NEW, caller),
                        (self.taken, NEW, receiver),  # the old one is gone
                        (self.sent, OLD, caller),  # too early: the guard does not know it any more
                        (self.sent, NEW, caller),
                    ):
                        before = tally.count
                        file.write_text(value)
                        await rotate(who)
                        await eventually(lambda before=before: tally.count > before + 40, "calls go on")
                assert tally.broken == 0
                assert set(tally.statuses()) == {200}
                yield receiver, caller


async def test_rotating_every_key_under_load_fails_no_call(outrider: Outrider, tmp_path: Path) -> None:
    """Sender and guard change their keys one after the other, in either order, while calls go on: not one 401."""
    files = Rotation.beginning(tmp_path, "")
    accept = f"{{ header: x-api-key, values: ['${{file:{files.taken}}}', '${{file:{files.next_}:-}}'] }}"
    credential = f"{{ header: x-api-key, value: '${{file:{files.sent}}}' }}"
    async with files.through(outrider, accept, credential) as (receiver, _):
        shown = await rotate(receiver)
        assert shown["inbound.accept[0].values[0]"]["shown_by"] == ["booking"]
        metrics = (await exchange(receiver.app.ports["telemetry.listen"], get("/metrics"))).body.decode()
        assert 'outrider_guard_key_uses_total{caller="booking",key="inbound.accept[0].values[1]"}' in metrics


async def test_rotating_the_secret_of_tokens_fails_no_call(outrider: Outrider, tmp_path: Path) -> None:
    """Sender and guard change the secret that signs tokens one after the other, in either order: not one 401."""
    files = Rotation.beginning(tmp_path, "nobody-signs-with-this-0123456789abcdef")
    accept = ", ".join(
        f"{{ jwt: {{ alg: HS256, key: '${{file:{file}}}', audience: user }} }}" for file in (files.taken, files.next_)
    )
    credential = f"{{ jwt: {{ alg: HS256, key: '${{file:{files.sent}}}' }} }}"
    async with files.through(outrider, accept, credential) as (_, caller):
        assert (await rotate(caller))["k"]["old_uses"] > 0


async def test_tokens_are_checked_with_a_key_set(outrider: Outrider, tmp_path: Path) -> None:
    """A key that is added to the set is known within moments; one that is removed proves nothing any more."""
    first, second = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    file = tmp_path / "keys.json"

    def publish(**keys: object) -> None:
        algorithm = jwt.algorithms.ECAlgorithm
        listed = [{**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid} for kid, key in keys.items()]
        file.write_text(json.dumps({"keys": listed}))

    def token(key: object, kid: str) -> str:
        claims = {"iss": "booking", "aud": "booking", "exp": time() + 60}
        return jwt.encode(claims, key, "ES256", {"kid": kid})

    publish(a=first)
    text = f"""
inbound:
  listen: 127.0.0.1:0
  app: '%s'
  accept: [ {{ jwt: {{ alg: ES256, jwks: {file}, audience: "{{service}}" }} }} ]
services: {{ other: 'http://127.0.0.1:9' }}
"""
    async with Target(plain()) as app, outrider(text % app.url) as proxy:
        inbound = proxy.app.ports["inbound.listen"]

        async def status(key: object, kid: str) -> int:
            return (await exchange(inbound, get("/x", f"Authorization: Bearer {token(key, kid)}"))).status

        assert await status(first, "a") == 200
        assert await status(second, "b") == 401
        publish(b=second)

        async def changed() -> None:
            while await status(second, "b") != 200:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(changed(), 3)
        assert await status(first, "a") == 401
        assert app.seen[0].get("authorization") is None
        assert app.seen[0].get("x-outrider-caller") == "booking"


def tokens_from(issuer: Target) -> str:
    """The credential `k`, fetched from this issuer."""
    return (
        f"credentials: {{ k: {{ oauth2: {{ token_url: '{issuer.url}/t', client_id: me, client_secret: s3cret }} }} }}\n"
    )


async def issue(one: Exchange) -> None:
    """An issuer that gives another token each time: t1, t2 and so on."""
    await one.body()
    await one.send(response(200, b'{"access_token":"t%d","expires_in":3600}' % len(one.target.seen)))


@pytest.mark.parametrize("critical", [True, False])
async def test_nothing_is_sent_without_its_credential(outrider: Outrider, critical: bool) -> None:
    """Until a credential has been fetched for the first time, calls that need it are 503 and reach no target, and the
    sidecar is not ready unless the app can do without; others pass; then everything is well by itself."""
    async with Target(plain(500)) as issuer, Target(plain()) as target:
        text = tokens_from(issuer)
        text += f"services: {{ user: {{ url: '{target.url}', auth: k, critical: {str(critical).lower()} }}, "
        text += f"other: '{target.url}' }}"
        async with outrider(text) as proxy:
            proxy.expected_errors.append("credential k cannot be fetched")
            telemetry = proxy.app.ports["telemetry.listen"]
            for method in ("GET", "POST"):
                answer = await exchange(proxy.port, request(method, "/user/x", b"1" if method == "POST" else None))
                assert answer.status == 503
                problem = json.loads(answer.body)
                assert (problem["error"], problem["origin"]) == ("CREDENTIAL_MISSING", "proxy")
                assert answer.get("retry-after") == "1"
            assert target.seen == []
            assert (await exchange(proxy.port, get("/other/x"))).status == 200
            ready = await exchange(telemetry, get("/readyz"))
            assert (ready.status, b" k\n" in ready.body) == ((503, True) if critical else (200, False))
            assert (await exchange(telemetry, get("/healthz"))).status == 200
            issuer.script(issue)
            await rotate(proxy)
            assert (await exchange(proxy.port, get("/user/x"))).status == 200
            assert target.seen[-1].get("authorization") == f"Bearer t{len(issuer.seen)}"
            assert (await exchange(telemetry, get("/readyz"))).status == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_revoked_token_is_fetched_anew(outrider: Outrider, method: str) -> None:
    """A 401 to a fetched token has it fetched again at once, and refused calls, of any method, are made once
    more with the new one; with retries switched off, too."""
    async with Target(issue) as issuer, Target(plain()) as target:
        text = tokens_from(issuer) + f"services: {{ user: {{ url: '{target.url}', auth: k, retry: false }} }}"

        async def takes_second(one: Exchange) -> None:
            await one.body()
            await one.send(response(200 if one.request.get("authorization") == "Bearer t2" else 401))

        async with outrider(text) as proxy:
            data = request(method, "/user/x", b"charge" if method == "POST" else None)
            assert (await exchange(proxy.port, data)).status == 200
            target.script(takes_second)
            answers = await asyncio.gather(*(exchange(proxy.port, data) for _ in range(5)))
            assert [answer.status for answer in answers] == [200] * 5
            assert len(issuer.seen) == 2
            assert (await exchange(proxy.port, data)).status == 200
            if method == "POST":
                assert {seen.body for seen in target.seen} == {b"charge"}


async def test_a_target_that_always_refuses_does_not_hammer_the_issuer(outrider: Outrider) -> None:
    """Its 401s pass, and ask for one new token, not for one each."""
    async with Target(issue) as issuer, Target(plain(401)) as target:
        text = tokens_from(issuer) + f"services: {{ user: {{ url: '{target.url}', auth: k }} }}"
        async with outrider(text) as proxy:
            for _ in range(20):
                assert (await exchange(proxy.port, get("/user/x"))).status == 401
            assert len(issuer.seen) == 2
            assert len(target.seen) == 21


@pytest.mark.parametrize("body", [b"", b"revoked"])
async def test_while_the_issuer_is_down_a_401_passes(outrider: Outrider, body: bytes) -> None:
    """There is no new token to try, so the app gets the target's answer, body included."""

    async def refuse(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.02)
        await one.send(chunked(body) if body else chunked())

    async with Target(issue) as issuer, Target(plain()) as target:
        text = tokens_from(issuer) + f"services: {{ user: {{ url: '{target.url}', auth: k }} }}"
        async with outrider(text) as proxy:
            proxy.expected_errors.append("credential k cannot be fetched")
            issuer.script(plain(503))
            target.script(refuse)
            answer = await exchange(proxy.port, get("/user/x"))
            assert (answer.status, answer.body) == (401, body)
            assert len(target.seen) == 1


async def test_an_issuer_that_fails_breaks_no_call(outrider: Outrider, tmp_path: Path) -> None:
    """A token is fetched once for all calls; while the issuer fails, the one there is stays in use."""

    async def issue(one: Exchange) -> None:
        assert b"grant_type=client_credentials" in await one.body()
        body = b'{"access_token":"t%d","expires_in":3600}' % len(issuer.seen)
        await one.send(response(200, body))

    async with Target(issue) as issuer, Target(plain()) as target:
        text = f"""
credentials:
  k: {{ oauth2: {{ token_url: '{issuer.url}/token', client_id: me, client_secret: s3cret }} }}
services: {{ user: {{ url: '{target.url}', auth: k }} }}
"""
        async with outrider(text) as proxy:
            for _ in range(5):
                assert (await exchange(proxy.port, get("/user/x"))).status == 200
            assert {seen.get("authorization") for seen in target.seen} == {"Bearer t1"}
            assert len(issuer.seen) == 1
            issuer.script(plain(500))
            proxy.expected_errors.append("credential k cannot be fetched")
            await rotate(proxy)
            await exchange(proxy.port, get("/user/x"))
            assert target.seen[-1].get("authorization") == "Bearer t1"
