"""The judge is neither blind nor partial: it finds a relay guilty that checks nothing, and can acquit other proxies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.wire.cases import CASES
from tests.wire.driver import Target, run
from tests.wire.model import CREDENTIAL, SECRET
from tests.wire.peers import Peer, peers, running

BY_NAME = {case.name: case for case in CASES}

# What every proxy that deserves the name does well.
SOUND = (
    "CL.0: POST",
    "CL.0: body then a request in one segment",
    "CL.TE: request behind the last chunk",
    "TE.CL: request inside a chunk",
    "duplicate CL: 3 then 4",
    "chunk size: upper-case digits",
    "chunk size: g",
    "credentials: none sent",
    "credentials: spoofed",
    "hop-by-hop requests: Cookie stays",
    "connections and pipelining: five",
    "connections and pipelining: close, then a request",
    "HTTP/1.0: plain",
    "space before colon: plain field",
    "truncated answers: length, FIN",
    "response queue: answer behind length, at once",
    "response queue: answer behind POST, later",
    "retries: stale connection, FIN, GET",
    "retries: never an answer, RST, POST",
    "upgrade: websocket",
)

# What a relay does wrong, one for each of the five things that are always judged.
FLAWS = {
    "line ends: bare CR in a value": "the target got what is not HTTP",
    "credentials: spoofed": "the credential at the target",
    "connections and pipelining: close, then a request": "which the app never asked for",
    "response queue: answer behind length, at once": "an answer nobody asked for",
    "malformed answers: NUL in a value": "the app got what is not HTTP",
    "space before colon: plain field": "expectation",
    "hop-by-hop requests: nominated": "expectation",
    "hop-by-hop answers: nominated": "expectation",
    "trailers: credential": "a credential in the trailer section",
    "HTTP/1.0: chunked answer": "Transfer-Encoding for an HTTP/1.0 app",
    "malformed answers: two lengths": "framed more than once",
    "1xx: 101 unasked": "expectation",
    "upgrade: h2c": "expectation",
}


@asynccontextmanager
async def relay(target: Target, *, leak: bool = False) -> AsyncIterator[int]:
    """Passes on whatever comes, with the credential behind everything that looks like a request line."""
    writers: list[asyncio.StreamWriter] = []
    tasks: set[asyncio.Task[None]] = set()

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, old: bytes, new: bytes) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data.replace(old, new))
        except ConnectionError:
            pass
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", target.port)
        writers.extend((writer, up_writer))
        tasks.add(asyncio.current_task())
        key = b"%b: %b\r\n" % (CREDENTIAL.encode(), SECRET)
        answer = (b" OK\r\n", b" OK\r\n" + key) if leak else (b"", b"")
        await asyncio.gather(
            copy(reader, up_writer, b"HTTP/1.1\r\n", b"HTTP/1.1\r\n" + key), copy(up_reader, writer, *answer)
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("name", FLAWS)
async def test_a_relay_is_found_guilty(name: str) -> None:
    """The judge sees what goes wrong, and says so."""
    async with Target() as target, relay(target) as port:
        wrong = await run(BY_NAME[name], port, target)
    assert FLAWS[name] in "\n".join(wrong)


async def test_a_leaked_credential_is_noticed() -> None:
    """An answer that shows the app the credential is never right."""
    async with Target() as target, relay(target, leak=True) as port:
        wrong = await run(BY_NAME["credentials: none sent"], port, target)
    assert "the credential reached the app" in wrong


async def test_what_is_harmless_passes_a_relay() -> None:
    """The judge finds nothing where there is nothing."""
    async with Target() as target, relay(target) as port:
        assert await run(BY_NAME["CL.0: POST with nothing"], port, target) == []


@pytest.mark.parametrize("peer", [peer for peer in peers() if peer.name != "Outrider"], ids=lambda peer: peer.name)
async def test_other_proxies_pass_what_is_basic(tmp_path: Path, peer: Peer) -> None:
    """The expectations are those of the RFCs, not of Outrider: proxies that share no code with it meet them, too."""
    if peer.program is None:
        pytest.skip(f"{peer.name} is not installed")
    async with Target() as target:
        with running(peer, tmp_path, target.port) as port:
            for name in SOUND:
                assert (name, await run(BY_NAME[name], port, target)) == (name, [])
                await target.drop_all()
                await asyncio.sleep(0.002)  # so that the proxy notices
