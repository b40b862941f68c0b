"""Credentials that are fetched or minted: in time, once for all calls, kept while their source fails, never shown."""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
import sys
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from time import monotonic, time
from typing import Any, cast

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from outrider.config.keys import KeyTextError
from outrider.config.load import load
from outrider.config.schema import MintedJwt, OAuth2
from outrider.controlplane import credentials as module
from outrider.controlplane.compile import compile_config
from outrider.controlplane.credentials import Fetched, FetchError, fetch_command, fetch_oauth2, fetched, minter
from outrider.dataplane.body import RequestBody
from outrider.dataplane.call import Call
from outrider.dataplane.engine.attempts import circumstances
from outrider.dataplane.engine.routing import Route
from outrider.dataplane.policies import credentials as policy
from outrider.dataplane.policies.credentials import Credential, TokenCredential
from outrider.dataplane.policies.deciders.retry import Decision, Retry
from tests.fakes import Clock, make_attempt, make_call, make_cluster, make_response, make_route

SECRET = "hunter2-hunter2"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Server = Callable[[web.Application], Awaitable[TestServer]]


# ---------------------------------------------------------------- an issuer


class Issuer:
    """Gives out tokens `t1`, `t2` and so on, unless told otherwise, and remembers who asked for what, and when."""

    def __init__(self) -> None:
        self.url = ""
        self.life: Any = 300
        self.answer: Answer | None = None
        self.forms: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.paths: list[str] = []
        self.given = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.times.append(monotonic())
        self.paths.append(request.raw_path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.forms.append({name: str(value) for name, value in (await request.post()).items()})
        if self.answer is not None:
            return await self.answer(request)
        self.given += 1
        return web.json_response(
            {"access_token": f"t{self.given}", "token_type": "Bearer", "expires_in": self.life},
        )

    def says(self, body: str, status: int = 200, **headers: str) -> None:
        """From now on it answers this."""

        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(text=body, status=status, headers=headers)

        self.answer = answer

    def settings(self, **parts: str) -> OAuth2:
        return OAuth2(token_url=self.url, client_id="orders", client_secret=SECRET, **parts)

    def watch(self) -> tuple[Credential, Fetched]:
        """A credential that comes from it."""
        credential = Credential("Authorization", prefix="Bearer ")
        return credential, Fetched("k", credential, fetch_oauth2(self.settings()))


@pytest.fixture
async def issuer(aiohttp_server: Server) -> Issuer:
    """An issuer with a server of its own."""
    made = Issuer()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", made.handle)
    server = await aiohttp_server(app)
    made.url = str(server.make_url("/token"))
    return made


def line(credential: Credential) -> bytes:
    """What is written into an attempt."""
    return credential.stamp(make_attempt())


async def test_what_the_issuer_is_asked(issuer: Issuer) -> None:
    """As RFC 6749 §4.4 wants it: a form, and our secret in `Authorization`, not in the form."""
    token, life = await fetch_oauth2(issuer.settings(scope="read write", audience="user"))()
    assert (token, life) == ("t1", 300.0)
    assert issuer.forms == [{"grant_type": "client_credentials", "scope": "read write", "audience": "user"}]
    scheme, _, proof = issuer.headers[0]["authorization"].partition(" ")
    assert (scheme, base64.b64decode(proof).decode()) == ("Basic", f"orders:{SECRET}")
    assert issuer.headers[0]["content-type"].startswith("application/x-www-form-urlencoded")


async def test_the_query_of_a_token_endpoint_is_sent(issuer: Issuer) -> None:
    """RFC 6749 section 3.2: it is kept as it is."""
    settings = OAuth2(token_url=f"{issuer.url}?tenant=a%2Bb&v=2", client_id="orders", client_secret=SECRET)
    token, _ = await fetch_oauth2(settings)()
    assert token == "t1"
    assert issuer.paths == ["/token?tenant=a%2Bb&v=2"]


async def test_what_is_not_configured_is_not_asked_for(issuer: Issuer) -> None:
    """No empty scope, no empty audience."""
    await fetch_oauth2(issuer.settings())()
    assert issuer.forms == [{"grant_type": "client_credentials"}]


async def test_one_fetch_serves_many_calls(issuer: Issuer) -> None:
    """No call starts one, and none waits for one."""
    credential, watch = issuer.watch()
    assert line(credential) == b""
    await watch.first()
    assert {line(credential) for _ in range(500)} == {b"Authorization: Bearer t1\r\n"}
    assert issuer.given == 1


async def test_it_is_fetched_again_ahead_of_its_expiry(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """At four fifths of its life or a little earlier; every token is replaced while it is still good."""
    monkeypatch.setattr(module, "_SHORTEST_PAUSE", 0.05)
    issuer.life = 0.4
    credential, watch = issuer.watch()
    pause = await watch.first()
    assert 0.4 * 0.7 < pause <= 0.4 * 0.8
    watching = asyncio.create_task(watch.watch(pause))
    async with asyncio.timeout(5):
        while line(credential) != b"Authorization: Bearer t4\r\n":
            await asyncio.sleep(0.01)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    gaps = [later - earlier for earlier, later in zip(issuer.times, issuer.times[1:], strict=False)]
    assert all(0.4 * 0.7 < gap < 0.4 for gap in gaps), gaps


@pytest.mark.parametrize(
    ("life", "seconds"), [(3600, 3600.0), (60.5, 60.5), (None, 300.0), ("soon", 300.0), ([], 300.0), ({}, 300.0)]
)
async def test_how_long_a_token_is_good(issuer: Issuer, life: Any, seconds: float) -> None:
    """As the issuer says; five minutes if it does not."""
    issuer.life = life
    assert await fetch_oauth2(issuer.settings())() == ("t1", seconds)


@pytest.mark.parametrize("life", [0, -5, 0.001])
async def test_an_issuer_is_not_flooded(issuer: Issuer, life: float) -> None:
    """Whatever it says about expiry, it is not asked more often than twice a second."""
    issuer.life = life
    _, watch = issuer.watch()
    assert await watch.first() >= 0.5


async def test_a_life_in_quotes(issuer: Issuer) -> None:
    """As some issuers write it; it must not be taken for longer than it is."""
    issuer.life = "60"
    assert (await fetch_oauth2(issuer.settings())())[1] == 60.0


async def test_a_short_life(issuer: Issuer) -> None:
    """Six seconds are enough to be fetched again in time."""
    issuer.life = 6
    _, watch = issuer.watch()
    assert await watch.first() < 6


async def nothing_at_all(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    raise AssertionError("nobody waits so long")


async def half_an_answer(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"access_token": "')
    await asyncio.sleep(30)
    return response


async def breaking_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"access_token": "')
    assert request.transport is not None
    request.transport.close()
    return response


def says(body: str, status: int = 200, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, status=status, headers=headers)

    return answer


GIVEN = json.dumps({"access_token": SECRET, "expires_in": 60})
BAD = {
    "500": (says(GIVEN, 500), "answered 500"),
    "401": (says('{"error": "invalid_client"}', 401), "answered 401"),
    "201": (says(GIVEN, 201), "answered 201"),
    "redirect": (says(GIVEN, 302, location="/elsewhere"), "answered 302"),
    "redirect that keeps the method": (says(GIVEN, 307, location="/elsewhere"), "answered 307"),
    "not JSON": (says(f"<html>{SECRET}</html>"), "is not JSON"),
    "half of JSON": (says(GIVEN[:-1]), "is not JSON"),
    "nothing": (says(""), "gave no access_token|is not JSON"),
    "not an object": (says(json.dumps([SECRET])), "gave no access_token"),
    "a string": (says(json.dumps(SECRET)), "gave no access_token"),
    "null": (says("null"), "gave no access_token"),
    "no token": (says('{"token": "x"}'), "gave no access_token"),
    "an empty token": (says('{"access_token": ""}'), "gave no access_token"),
    "a token that is a number": (says('{"access_token": 7}'), "gave no access_token"),
    "hanging": (nothing_at_all, "did not answer within"),
    "hanging in the middle": (half_an_answer, "did not answer within"),
    "breaking off": (breaking_off, "not completed|payload|closed|Connection"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_answer(issuer: Issuer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bad answer is told apart, with the address of the issuer, and without a secret."""
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    issuer.answer, reason = BAD[name]
    with pytest.raises(FetchError, match=reason) as caught:
        await fetch_oauth2(issuer.settings())()
    assert issuer.url in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(issuer.times) == 1  # a redirect is not followed: it would get our secret


async def test_nobody_there(unused_tcp_port: int) -> None:
    """An issuer that is down is named."""
    settings = OAuth2(token_url=f"http://127.0.0.1:{unused_tcp_port}/t", client_id="a", client_secret=SECRET)
    with pytest.raises(FetchError, match=f"127.0.0.1:{unused_tcp_port}") as caught:
        await fetch_oauth2(settings)()
    assert SECRET not in str(caught.value)


async def test_a_huge_answer(issuer: Issuer) -> None:
    """An issuer that never stops talking gets no memory."""
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"access_token": "')
        while sent < 64 * 2**20:
            await response.write(b"x" * 2**16)
            sent += 2**16
        await response.write(b'"}')
        return response

    issuer.answer = endless
    with pytest.raises(FetchError):
        await fetch_oauth2(issuer.settings())()
    assert sent < 64 * 2**20


@pytest.mark.parametrize(
    "body",
    ['{"access_token": "t", "expires_in": 1' + "0" * 400 + "}", "[" * 20_000 + "]" * 20_000],
    ids=["a life beyond numbers", "nested deeply"],
)
async def test_an_answer_that_upsets_the_parser(issuer: Issuer, body: str) -> None:
    """It is a bad answer like any other: whoever watches over the credential goes on."""
    issuer.says(body)
    _, watch = issuer.watch()
    assert await watch.refresh() > 0


@pytest.mark.parametrize("token", ["s3cret\r\nx-admin: 1", " s3cret", "s3cret\n", "s3cret-тайна", "s3cret\x00"])
async def test_a_token_that_cannot_stand_in_a_header(
    issuer: Issuer, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused, and the one before it stays."""
    credential, watch = issuer.watch()
    await watch.first()
    issuer.says(json.dumps({"access_token": token}))
    await watch.refresh()
    assert line(credential) == b"Authorization: Bearer t1\r\n"
    assert "one line of printable ASCII" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_failing_issuer(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """The last token stays in use; the log says so once, and for how long it is good."""
    credential, watch = issuer.watch()
    await watch.first()
    issuer.says(SECRET, 503)
    pauses = [await watch.refresh() for _ in range(12)]
    assert line(credential) == b"Authorization: Bearer t1\r\n"
    assert len(caplog.messages) == 1
    assert f"credential k cannot be fetched: {issuer.url} answered 503" in caplog.messages[0]
    assert any(f"good for {left} s more" in caplog.messages[0] for left in (299, 300))
    assert SECRET not in caplog.text
    assert 0.4 <= pauses[0] <= 0.6
    assert all(pause <= 36 for pause in pauses)  # and it is asked less and less often
    assert pauses[-1] >= 24


async def test_a_failing_issuer_comes_back(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """The next token is used, the next trouble is told again, and the pauses are short again."""
    credential, watch = issuer.watch()
    await watch.first()
    for number in (2, 3):
        issuer.says("", 500)
        assert await watch.refresh() < 1
        await watch.refresh()
        issuer.answer = None
        assert await watch.refresh() > 100
        assert line(credential) == f"Authorization: Bearer t{number}\r\n".encode()
        assert len(caplog.messages) == number - 1


async def test_an_issuer_that_is_down_from_the_beginning(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to fall back on, which is said every time; and nothing is written, not even a bare `Bearer`."""
    issuer.says("", 500)
    credential, watch = issuer.watch()
    assert await watch.first() < 1
    assert (credential.ready, line(credential)) == (False, b"")
    assert "there is no value to use" in caplog.messages[0]
    issuer.answer = None
    await watch.refresh()
    assert (credential.ready, line(credential)) == (True, b"Authorization: Bearer t1\r\n")


# ---------------------------------------------------------------- a command


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_what_a_command_prints() -> None:
    """Its output without what surrounds it; good until the next time, and a little longer."""
    value, life = await fetch_command(python("print('  s3cret  ')"), 60.0)()
    assert value == "s3cret"
    assert life * 0.8 == pytest.approx(60.0)


async def test_a_command_gets_nothing_to_read() -> None:
    """One that asks a question does not wait for an answer."""
    value, _ = await fetch_command(python("import sys; print(len(sys.stdin.read()))"), 60.0)()
    assert value == "0"


async def test_a_command_and_its_arguments_are_no_shell_text() -> None:
    """An argument is passed as it is written."""
    value, _ = await fetch_command([*python("import sys; print(sys.argv[1])"), "$HOME; *"], 60.0)()
    assert value == "$HOME; *"


async def test_how_often_a_command_is_run(tmp_path: Path) -> None:
    """As configured, or a little sooner."""
    credential = Credential("x-key")
    count = tmp_path / "count"
    watch = Fetched("k", credential, fetch_command(["sh", "-c", f"echo x >> {shlex.quote(str(count))}; echo v"], 60.0))
    assert 54 <= await watch.first() <= 60
    assert {line(credential) for _ in range(100)} == {b"x-key: v\r\n"}
    assert count.read_text() == "x\n"


BAD_COMMANDS: dict[str, tuple[list[str], str]] = {
    "exit code": (python(f"print({SECRET!r}); raise SystemExit(3)"), "failed with exit code 3"),
    "killed": (["sh", "-c", f"echo {SECRET}; kill -9 $$"], "failed with exit code -9"),
    "hanging": (python("import time; time.sleep(30)"), "did not end in time"),
    "hanging after its output": (python(f"import time; print({SECRET!r}, flush=True); time.sleep(30)"), "in time"),
    "deaf": (["sh", "-c", "trap '' TERM INT; while :; do :; done"], "did not end in time"),
    "not found": (["/nowhere/at-all", SECRET], "/nowhere/at-all: No such file or directory"),
    "not a program": (["/", SECRET], "/: Permission denied"),
    "too much": (python("print('x' * 100_000)"), "printed more than 65536 bytes"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
async def test_bad_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every failure is told apart, with the name of the program, and without its arguments and its output."""
    monkeypatch.setattr(module, "_TIMEOUT", 0.3 if name not in ("exit code", "killed", "too much") else 10.0)
    command, reason = BAD_COMMANDS[name]
    began = monotonic()
    with pytest.raises(FetchError, match=reason) as caught:
        await fetch_command(command, 60.0)()
    assert str(caught.value).startswith(command[0])
    assert SECRET not in str(caught.value)
    assert monotonic() - began < 10


async def test_what_a_hanging_command_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that keeps the output open keeps nobody waiting."""
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    began = monotonic()
    with pytest.raises(FetchError, match="did not end in time"):
        await fetch_command(["sh", "-c", "sleep 3; echo x"], 60.0)()
    assert monotonic() - began < 2


async def test_a_command_that_never_stops_printing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended as soon as it has printed too much, not when memory or time is used up."""
    monkeypatch.setattr(module, "_TIMEOUT", 3.0)
    began = monotonic()
    with pytest.raises(FetchError, match="printed more than"):
        await fetch_command(python("while True: print('x' * 100, flush=True)"), 60.0)()
    assert monotonic() - began < 2


async def test_a_command_does_not_outlive_us(tmp_path: Path) -> None:
    """Whoever stops in the middle of a fetch leaves no process behind."""
    late = tmp_path / "late"
    code = f"import pathlib, time; time.sleep(0.6); pathlib.Path({str(late)!r}).touch()"
    fetching = asyncio.create_task(cast(Any, fetch_command(python(code), 60.0)()))
    await asyncio.sleep(0.3)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await asyncio.sleep(0.8)
    assert not late.exists()


async def test_what_a_command_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    """It may hold the output open; it is ended with the command, and does not stay as a zombie."""
    pid = tmp_path / "pid"
    began = monotonic()
    value, _ = await fetch_command(["sh", "-c", f"sleep 30 & echo $! > {pid}; echo v"], 60.0)()
    assert value == "v"
    assert monotonic() - began < 5
    async with asyncio.timeout(3):
        while _is_running(int(pid.read_text())):
            await asyncio.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_the_loop_goes_on_while_a_command_runs() -> None:
    """A command that takes its time, or cannot be started at once, holds no call up."""
    fetching = asyncio.create_task(cast(Any, fetch_command(["sh", "-c", "sleep 0.2; echo v"], 60.0)()))
    turns = 0
    while not fetching.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 5


@pytest.mark.parametrize("code", ["pass", "print('two'); print('lines')", "import os; os.write(1, b'\\xff\\x00')"])
async def test_output_that_is_no_secret(code: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing, several lines, and bytes that are no text are refused; the value before stays."""
    credential = Credential("x-key", "before")
    await Fetched("k", credential, fetch_command(python(code), 60.0)).refresh()
    assert line(credential) == b"x-key: before\r\n"
    assert "one line of printable ASCII" in caplog.messages[0]


async def test_a_failing_command(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As with an issuer: the last value stays, and the log says so once."""
    key = tmp_path / "key"
    key.write_text("first")
    credential = Credential("x-key")
    watch = Fetched("k", credential, fetch_command(["cat", str(key)], 60.0))
    await watch.first()
    key.unlink()
    for _ in range(3):
        await watch.refresh()
    assert line(credential) == b"x-key: first\r\n"
    assert len(caplog.messages) == 1
    assert "credential k cannot be fetched: cat failed with exit code 1" in caplog.messages[0]
    key.write_text("second")
    await watch.refresh()
    assert line(credential) == b"x-key: second\r\n"


# ---------------------------------------------------------------- our own tokens


@cache
def private(alg: str, number: int = 0) -> Any:
    """A key to sign with; another one for every number."""
    if alg == "HS256":
        return str(number) * 64
    if alg == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1()) if alg == "ES256" else ed25519.Ed25519PrivateKey.generate()


def signing(alg: str, number: int = 0) -> str:
    """As it stands in a file."""
    key = private(alg, number)
    if alg == "HS256":
        return cast(str, key)
    return cast(str, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def verifying(alg: str, number: int = 0) -> str:
    key = private(alg, number)
    if alg == "HS256":
        return cast(str, key)
    return cast(str, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def minted(alg: str, number: int = 0, **parts: Any) -> MintedJwt:
    return MintedJwt(alg=cast(Any, alg), key=signing(alg, number), **parts)


def make_tokens(
    settings: MintedJwt, clock: Callable[[], float] = time, ttl: float = 300.0, audience: str = "{target}"
) -> TokenCredential:
    return TokenCredential(minter(settings, "orders", settings.key), audience=audience, ttl=ttl, clock=clock)


def token(credential: TokenCredential, target: str = "user") -> str:
    """What is written into an attempt at this target."""
    stamped = credential.stamp(make_attempt(make_call(route=make_route(make_cluster(target)))))
    start = b"authorization: Bearer "
    assert stamped.startswith(start)
    assert stamped.endswith(b"\r\n")
    return stamped[len(start) : -2].decode()


def claims(text: str, alg: str = "HS256", number: int = 0, audience: str = "user") -> dict[str, Any]:
    """What a receiver reads, who verifies everything."""
    decoded = jwt.decode(
        text,
        verifying(alg, number),
        algorithms=[alg],
        audience=audience,
        options={"require": ["iss", "sub", "aud", "iat", "exp"]},
    )
    return cast(dict[str, Any], decoded)


@pytest.mark.parametrize("alg", ["HS256", "RS256", "ES256", "EdDSA"])
def test_a_receiver_takes_it(alg: str) -> None:
    """Who signs, for whom, since when and until when."""
    began = int(time())
    text = token(make_tokens(minted(alg)))
    read = claims(text, alg)
    assert (read["iss"], read["sub"], read["aud"]) == ("orders", "orders", "user")
    assert began <= read["iat"] <= time()
    assert 299 <= read["exp"] - read["iat"] <= 301
    assert jwt.get_unverified_header(text) == {"alg": alg, "typ": "JWT"}


@pytest.mark.parametrize("alg", ["HS256", "RS256", "ES256", "EdDSA"])
def test_another_key_verifies_nothing(alg: str) -> None:
    """The signature is of the key that is configured."""
    with pytest.raises(jwt.InvalidSignatureError):
        claims(token(make_tokens(minted(alg))), alg, number=1)


def test_what_can_be_set() -> None:
    """Who signs, for whom, the name of the key, and further claims."""
    settings = minted("HS256", issuer="urn:{service}", kid="k1", claims={"role": "batch", "level": 3, "ok": True})
    text = token(make_tokens(settings, audience="urn:{target}:api"))
    read = claims(text, audience="urn:user:api")
    assert (read["iss"], read["sub"]) == ("urn:orders", "urn:orders")
    assert (read["role"], read["level"], read["ok"]) == ("batch", 3, True)
    assert jwt.get_unverified_header(text)["kid"] == "k1"


def test_every_target_gets_its_own() -> None:
    """A token for one service is of no use with another, if that one should want to pass it on."""
    credential = make_tokens(minted("HS256"))
    assert claims(token(credential, "user"))["aud"] == "user"
    assert claims(token(credential, "stock"), audience="stock")["aud"] == "stock"
    with pytest.raises(jwt.InvalidAudienceError):
        claims(token(credential, "stock"))


def test_it_is_kept_for_most_of_its_life() -> None:
    """Four fifths; signatures are dear. Each target's counts for itself."""
    clock = Clock(time())
    credential = make_tokens(minted("HS256"), clock)
    first = token(credential)
    clock.advance(100)
    other = token(credential, "stock")
    clock.advance(139.9)
    assert token(credential) == first
    clock.advance(0.2)
    second = token(credential)
    assert second != first
    assert token(credential, "stock") == other
    clock.advance(100)
    assert token(credential, "stock") != other
    assert token(credential) == second


@pytest.mark.parametrize("ttl", [1.0, 2.0, 5.0, 60.0, 300.0])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_what_is_written_has_not_expired(ttl: float, fraction: float) -> None:
    """Until the very end of the time for which a token is kept."""
    clock = Clock(1_800_000_000 + fraction)
    credential = make_tokens(minted("HS256"), clock, ttl)
    for _ in range(40):
        read = jwt.decode(token(credential), options={"verify_signature": False})
        assert read["exp"] > clock()
        clock.advance(ttl / 11)


def test_a_clock_that_is_set_back() -> None:
    """A token from the future is not kept until the clock has come there again: receivers refuse it."""
    clock = Clock(1_800_000_000.0)
    credential = make_tokens(minted("HS256"), clock)
    token(credential)
    clock.advance(-3600)
    assert jwt.decode(token(credential), options={"verify_signature": False})["iat"] <= clock()


def test_another_key_is_used_at_once() -> None:
    """A token that was kept is not written any more; and the old key is not asked for."""
    credential = make_tokens(minted("HS256"))
    claims(token(credential), number=0)
    settings = minted("HS256", 1)
    credential.replace(minter(settings, "orders", settings.key))
    claims(token(credential), number=1)
    assert not credential.has_previous(monotonic())


def test_what_is_kept_is_bounded() -> None:
    """However many targets there are."""
    credential = make_tokens(minted("HS256"))
    for number in range(policy._MOST_TARGETS * 2 + 1):
        token(credential, f"s{number}")
        assert len(credential._signer._kept) <= policy._MOST_TARGETS


@pytest.mark.parametrize(
    ("alg", "key"),
    [
        *[(alg, signing(other)) for alg in ("RS256", "ES256", "EdDSA") for other in ("HS256", "RS256", "ES256", "EdDSA")
          if alg != other],
        ("HS256", signing("RS256")),
        ("HS256", verifying("ES256")),
        ("RS256", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"),
    ],
)  # fmt: skip
def test_a_key_of_another_kind(alg: str, key: str) -> None:
    """It is refused where it is read, and is not shown."""
    with pytest.raises(KeyTextError) as caught:
        minter(MintedJwt(alg=cast(Any, alg), key=key), "orders", key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_signs_nothing(alg: str) -> None:
    """Whoever has mixed up the two files hears of it as of any other wrong key."""
    key = verifying(alg)
    with pytest.raises(KeyTextError, match=f"this is a public key; {alg} signs with a private key"):
        minter(MintedJwt(alg=cast(Any, alg), key=key), "orders", key)


def test_as_configured(tmp_path: Path) -> None:
    """From the file to the header; what does not have to be fetched is not watched."""
    path = tmp_path / "outrider.yaml"
    path.write_text(
        "service: orders\n"
        "services: {user: 'http://h:1'}\n"
        "credentials:\n"
        "  plain: {header: x-key, value: v}\n"
        f"  own: {{jwt: {{alg: HS256, key: {signing('HS256')!r}, audience: '{{service}}/{{target}}', ttl: 60s}}}}\n"
        "  issued: {oauth2: {token_url: 'http://127.0.0.1:1/t', client_id: a, client_secret: b}}\n"
        "  printed: {header: x-printed, command: [echo, p], every: 60s}\n"
    )
    resolved, _ = load([str(path)])
    made = compile_config(resolved).credentials
    own, issued, printed = made["own"], made["issued"], made["printed"]
    assert isinstance(own, TokenCredential)
    assert isinstance(issued, Credential)
    assert isinstance(printed, Credential)
    read = claims(own.stamp(make_attempt()).split()[-1].decode(), audience="orders/user")
    assert read["exp"] - read["iat"] in (60, 61)
    assert own.owned == issued.owned == {b"authorization"}
    watched = {name for name, one in made.items() if fetched(name, resolved.credentials[name], cast(Any, one))}
    assert watched == {"issued", "printed"}
    issued.replace("t")
    assert line(issued) == b"Authorization: Bearer t\r\n"


# ---------------------------------------------------------------- overlap


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time in which keys are replaced."""
    made = Clock(1000.0)
    monkeypatch.setattr(policy, "monotonic", made)
    return made


def stamped(credential: Credential, at: float, *, old: bool) -> bytes:
    call = make_call(now=at)
    call.with_old_keys = old
    return credential.stamp(make_attempt(call))


def rotated(now: Clock, overlap: float = 300.0) -> Credential:
    """One that has been replaced just now."""
    credential = Credential("x-key", "old", overlap=overlap)
    now.advance(5000)
    credential.replace("new")
    return credential


def test_the_value_before(now: Clock) -> None:
    """It is written for calls that were refused with the present one, within the overlap; for no others, ever."""
    credential = rotated(now)
    end = now() + 300
    assert stamped(credential, now(), old=False) == b"x-key: new\r\n"
    assert stamped(credential, now(), old=True) == b"x-key: old\r\n"
    assert stamped(credential, end - 0.1, old=True) == b"x-key: old\r\n"
    assert stamped(credential, end, old=True) == b"x-key: new\r\n"
    assert credential.has_previous(end - 0.1)
    assert not credential.has_previous(end)


@pytest.mark.parametrize("overlap", [0.0, 300.0])
def test_the_first_value_has_none_before_it(now: Clock, overlap: float) -> None:
    """Neither what was there from the beginning nor what was fetched first."""
    for credential in (Credential("x-key", "v", overlap=overlap), Credential("x-key", overlap=overlap)):
        credential.replace("v")
        assert not credential.has_previous(now())
        assert stamped(credential, now(), old=True) == b"x-key: v\r\n"


def test_without_overlap_the_value_before_is_gone(now: Clock) -> None:
    """`overlap: 0` forgets at once."""
    credential = rotated(now, overlap=0.0)
    assert not credential.has_previous(now())
    assert stamped(credential, now(), old=True) == b"x-key: new\r\n"


def test_the_same_value_again_is_no_rotation(now: Clock) -> None:
    """An issuer that gives the same token twice does not make it its own predecessor."""
    credential = rotated(now)
    now.advance(200)
    credential.replace("new")
    assert stamped(credential, now(), old=True) == b"x-key: old\r\n"
    now.advance(100)
    assert not credential.has_previous(now())


def test_only_one_value_is_remembered(now: Clock) -> None:
    """The latest but one, for its own time."""
    credential = rotated(now)
    now.advance(200)
    credential.replace("newer")
    assert stamped(credential, now() + 299, old=True) == b"x-key: new\r\n"


def test_a_value_that_is_refused_changes_nothing(now: Clock) -> None:
    """Neither the present value nor the one before it."""
    credential = rotated(now)
    with pytest.raises(ValueError, match="one line"):
        credential.replace("two\nlines")
    assert stamped(credential, now(), old=False) == b"x-key: new\r\n"
    assert stamped(credential, now(), old=True) == b"x-key: old\r\n"


def test_the_prefix_is_part_of_both(now: Clock) -> None:
    """`Bearer` stands before the old token, too."""
    credential = Credential("authorization", "t1", overlap=10.0, prefix="Bearer ")
    credential.replace("t2")
    assert stamped(credential, now(), old=True) == b"authorization: Bearer t1\r\n"
    assert "t1" not in repr(credential)


# ---------------------------------------------------------------- once more after 401


def refused_call(
    credentials: tuple[Credential | TokenCredential, ...], now: float, method: bytes = b"GET", **parts: Any
) -> Call:
    return make_call(method, route=make_route(credentials=credentials), now=now, **parts)


def decide(call: Call, status: int = 401, number: int = 1, after: float = 0.0, retry: Retry | None = None) -> Decision:
    attempt = make_attempt(call, make_response(status), number=number, now=call.started + after)
    around = circumstances(call, cast(Route, call.route), attempt)
    return (retry or Retry()).decide(attempt, around, attempt.answered)


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"POST", b"PATCH", b"PROPFIND"])
def test_refused_with_the_new_key(now: Clock, method: bytes) -> None:
    """Nothing was done, so any method goes once more, at once, with the key before; and no third time."""
    credential = rotated(now)
    call = refused_call((credential,), now(), method)
    assert credential.stamp(make_attempt(call)) == b"x-key: new\r\n"
    assert decide(call) == Decision(0.0, "401")
    assert call.with_old_keys
    assert credential.stamp(make_attempt(call, number=2)) == b"x-key: old\r\n"
    assert decide(call, number=2) == Decision(None, "not_needed")


def test_only_after_401(now: Clock) -> None:
    """Another refusal is not about the key."""
    for status in (400, 403, 404, 407):
        call = refused_call((rotated(now),), now(), b"POST")
        assert decide(call, status) == Decision(None, "not_needed")
        assert not call.with_old_keys


def test_only_within_the_overlap(now: Clock) -> None:
    """Counted at the answer; after that 401 is the app's to hear."""
    credential = rotated(now)
    inside = refused_call((credential,), now(), timeout=1000.0)
    assert decide(inside, after=299.9) == Decision(0.0, "401")
    outside = refused_call((credential,), now(), timeout=1000.0)
    assert decide(outside, after=300.0) == Decision(None, "not_needed")
    assert not outside.with_old_keys


def test_without_a_replaced_key_401_is_the_answer(now: Clock) -> None:
    """No credential, one that is still its first, one without overlap, and a minted one have none before them."""
    for credentials in (
        (),
        (Credential("x-key", "v", overlap=300.0),),
        (rotated(now, overlap=0.0),),
        (make_tokens(minted("HS256")),),
    ):
        assert decide(refused_call(cast(Any, credentials), now())) == Decision(None, "not_needed")


def test_one_replaced_key_of_several_is_enough(now: Clock) -> None:
    """The others stay as they are."""
    other = Credential("x-other", "o", overlap=300.0)
    call = refused_call((other, rotated(now)), now())
    assert decide(call) == Decision(0.0, "401")
    assert other.stamp(make_attempt(call)) == b"x-other: o\r\n"


@pytest.mark.parametrize(
    ("kept", "decision"), [(True, Decision(0.0, "401")), (False, Decision(None, "body_too_large"))]
)
def test_only_if_the_body_can_be_repeated(now: Clock, kept: bool, decision: Decision) -> None:
    """What has been sent and not kept cannot be sent again."""
    body = RequestBody(cast(Any, None), 10 if kept else 0, chunked=False)
    body.feed(b"body")
    body.finish()
    call = refused_call((rotated(now),), now(), b"POST", body=body)
    assert decide(call) == decision
    assert call.with_old_keys is kept


def test_it_is_once_per_call_whatever_comes_between(now: Clock) -> None:
    """A repetition for another reason does not make room for a second try with old keys."""
    call = refused_call((rotated(now),), now())
    assert decide(call, 503).wait is not None
    assert decide(call, number=2) == Decision(0.0, "401")
    assert decide(call, 503, number=3).wait is not None
    assert decide(call, number=4) == Decision(None, "not_needed")


def test_a_key_replaced_while_an_attempt_was_under_way(now: Clock) -> None:
    """The attempt showed the key before; so the present one is tried first, then the old one, then no more."""
    credential = rotated(now)
    call = refused_call((credential,), now() - 0.005, b"POST")
    assert decide(call) == Decision(0.0, "401")
    assert credential.stamp(make_attempt(call, number=2, now=now())) == b"x-key: new\r\n"
    assert decide(call, number=2, after=0.02) == Decision(0.0, "401")
    assert credential.stamp(make_attempt(call, number=3, now=now())) == b"x-key: old\r\n"
    assert decide(call, number=3, after=0.03) == Decision(None, "not_needed")
