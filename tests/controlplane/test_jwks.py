"""Key sets: what strangers publish is read to its end, bounded, and one odd key spoils none of the others."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic, time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from outrider.controlplane import jwks as module
from outrider.controlplane.jwks import KeySet, parse
from outrider.dataplane.policies.guard.tokens import TokenProof
from tests.fakes import make_call

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()


def published(key: Any, made_for: str, **members: Any) -> dict[str, Any]:
    """The key as issuers publish it; a private one with its private members."""
    made: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(made_for).to_jwk(key))
    return {**made, **members}


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


GOOD = published(RSA.public_key(), "RS256", kid="good")


@pytest.mark.parametrize(("key", "alg"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")])
def test_private_members_are_left_aside(key: Any, alg: str) -> None:
    """A set that was published with its private keys still verifies tokens: with their public halves."""
    keys, skipped = parse(key_set(published(key, alg, kid="a")), alg)
    assert skipped == []
    proof = TokenProof(alg, keys, audience="us")
    token = jwt.encode({"iss": "them", "aud": "us", "exp": time() + 60}, key, alg, {"kid": "a"})
    assert proof.prove(make_call(headers={b"authorization": f"Bearer {token}".encode()})) == ("them", "")


@pytest.mark.parametrize(
    "odd",
    [
        published(WEAK.public_key(), "RS256", alg="RS256"),
        {**GOOD, "n": "!!!"},
        {**GOOD, "n": "A" * 100_000},
        {**GOOD, "n": ""},
        {**GOOD, "n": 5},
        {**GOOD, "e": None},
        {**GOOD, "e": "AA"},
        {**GOOD, "kid": 5},
        {**GOOD, "kid": []},
        {**GOOD, "kty": "other"},
        {**GOOD, "kty": []},
        {**GOOD, "alg": []},
        {**GOOD, "use": {}},
        {"kty": "RSA"},
        {},
        [],
        None,
        "key",
        published(EC.public_key(), "ES256"),
    ],
    ids=lambda odd: "another kind" if isinstance(odd, dict) and "crv" in odd else json.dumps(odd)[:40],
)
def test_an_odd_key_spoils_no_other(odd: Any) -> None:
    """Whatever stands beside a good key in a set, before or behind it, the good one is used."""
    for keys in ((odd, GOOD), (GOOD, odd)):
        assert [kid for kid, _ in parse(key_set(*keys), "RS256")[0]] == ["good"]


@pytest.mark.parametrize(
    ("key", "alg", "why"),
    [
        (published(WEAK.public_key(), "RS256"), "RS256", "no key for RS256"),
        (published(WEAK.public_key(), "RS256", alg="RS256"), "RS256", "1024 bits"),
        (published(P384.public_key(), "ES384", alg="ES256"), "ES256", "no key for ES256"),
        ({"kty": "oct", "k": "c2hvcnQ"}, "HS256", "fewer than 32 bytes"),
    ],
)
def test_weak_keys_are_not_used(key: dict[str, Any], alg: str, why: str) -> None:
    """RSA below 2048 bits, other curves than the algorithm's and short secrets (RFC 7518) are as good as no key."""
    with pytest.raises(ValueError, match=why):
        parse(key_set(key), alg)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"keys": {}}',
        b'{"keys": 5}',
        b"[" * 100_000,
        b'{"keys":' * 50_000,
        b'{"keys": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b'{"keys": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
        b"<html>",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_key_set(data: bytes) -> None:
    """Nothing that a stranger can write in its place gets further than a complaint."""
    with pytest.raises(ValueError, match=r"not JSON|not a key set"):
        parse(data, "RS256")


def test_the_number_of_keys_is_bounded() -> None:
    """The first hundred are used, and the rest is said to be left out."""
    keys, skipped = parse(key_set(*[{**GOOD, "kid": f"{number}"} for number in range(150)]), "RS256")
    assert len(keys) == 100
    assert skipped == ["there are more than 100"]


# ---------------------------------------------------------------- from a URL


@asynccontextmanager
async def issuer(*segments: bytes, pause: float = 0.02) -> AsyncIterator[str]:
    """A server that answers every request with these segments; its URL."""

    answers: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.add(asyncio.current_task())
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            for segment in segments:
                writer.write(segment)
                await writer.drain()
                await asyncio.sleep(pause)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys?token=s3cret"
        await asyncio.wait_for(asyncio.gather(*(one for one in answers if one is not None)), 5)


def made(url: str) -> tuple[KeySet, TokenProof]:
    proof = TokenProof("RS256", [], audience="us")
    return KeySet(url, "RS256", proof), proof


BODY = key_set(GOOD)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "segments",
    [
        (HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY), BODY[:50], BODY[50:]),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"32\r\n" + BODY[:50], b"\r\n%x\r\n" % (len(BODY) - 50)
         + BODY[50:] + b"\r\n", b"0\r\n\r\n"),
        (HEAD + b"Connection: close\r\n\r\n", BODY[:50], BODY[50:100], BODY[100:]),
    ],
    ids=["two segments", "chunked", "until the end"],
)  # fmt: skip
async def test_a_key_set_is_read_to_its_end(segments: tuple[bytes, ...], caplog: pytest.LogCaptureFixture) -> None:
    """However it is framed and cut into segments; and the log shows no secret of its URL."""
    caplog.set_level(logging.INFO, "outrider")
    async with issuer(*segments) as url:
        keys, proof = made(url)
        assert await keys.look() == module._URL_EVERY
    assert [kid for kid, _ in proof._keys] == ["good"]
    assert "has 1 keys" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "segments",
    [
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"x" * 1000),
        (HEAD + b"\r\n", b"x" * 600_000, b"x" * 600_000),
        (HEAD + b"Content-Length: 100\r\n\r\n", b"short"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",),
        (b"nonsense\r\n\r\n",),
        (HEAD + b"\r\n" + b"[" * 100_000,),
    ],
    ids=["too large", "too large without saying so", "cut short", "elsewhere", "an error", "nonsense", "brackets"],
)
async def test_an_issuer_that_fails_ends_nothing(segments: tuple[bytes, ...], caplog: pytest.LogCaptureFixture) -> None:
    """The last keys stay, the log says so once and shows no secret, and the set is asked for again soon."""
    async with issuer(*segments, pause=0.0) as url:
        keys, proof = made(url)
        proof.replace([("kept", b"x")])
        for _ in range(2):
            assert await keys.look() == module._AGAIN
    assert [kid for kid, _ in proof._keys] == ["kept"]
    assert len(caplog.records) == 1
    assert "s3cret" not in caplog.text


async def test_traffic_does_not_delay_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an issuer fails, tokens with unknown keys bring no look forward and put none off."""
    monkeypatch.setattr(module, "_AGAIN", 0.1)
    async with issuer(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n") as url:
        keys, proof = made(url)
        pause = await keys.look()
        proof.unknown_key()
        began = monotonic()
        assert await keys.next_look(pause) == 0.1
        assert 0.05 < monotonic() - began < 2.0


async def test_an_unknown_key_is_asked_for_soon_but_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of an unknown key brings the next look forward, to a moment that strangers cannot choose."""
    monkeypatch.setattr(module, "_ON_DEMAND_EVERY", 0.1)
    async with issuer(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY) as url:
        keys, proof = made(url)
        pause = await keys.look()
        assert pause == module._URL_EVERY
        asyncio.get_running_loop().call_later(0.01, proof.unknown_key)
        began = monotonic()
        await asyncio.wait_for(keys.next_look(pause), 3)
        assert monotonic() - began > 0.05
