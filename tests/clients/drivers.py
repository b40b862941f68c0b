"""Real HTTP clients behind one interface, so that one promise can be tested with all of them.

Each is used as its documentation says, with a connection pool where it has one, and reports what came over the wire
as far as it lets anybody see that.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, cast

import aiohttp
import httpx
import requests
import yarl

PATIENCE = 10.0
NODE = Path(__file__).parent / "node"

HeaderList = Sequence[tuple[str, str]]


@dataclass
class Answer:
    """A response as a client saw it."""

    status: int
    headers: HeaderList
    body: bytes
    url: str = ""
    continued: bool = False

    def get_all(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str:
        """The only value of a header, or the empty string."""
        values = self.get_all(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else ""

    def json(self) -> Any:
        """The body, understood."""
        return json.loads(self.body)


@dataclass
class Ask:
    """A request to make. `proxy` is the URL of the proxy to send it through, in absolute form."""

    url: str
    method: str = "GET"
    headers: HeaderList = ()
    body: bytes | None = None
    chunked: bool = False
    follow: bool = False
    proxy: str | None = None


def uneven(body: bytes) -> Iterator[bytes]:
    """The body in pieces of uneven sizes."""
    at, size = 0, 1
    while at < len(body):
        yield body[at : at + size]
        at += size
        size = size * 3 % 70_001 + 1


async def uneven_async(body: bytes) -> AsyncIterator[bytes]:
    """The same, for clients that want it so."""
    for piece in uneven(body):
        yield piece


def since_first(times: Sequence[float]) -> list[float]:
    """Seconds since the first of them."""
    return [time - times[0] for time in times]


class Driver(Protocol):
    """What every client can do."""

    keeps_answer_case: bool

    def call(self, ask: Ask) -> Answer:
        """One call, to the end of its answer."""

    def connections(self, asks: Sequence[Ask]) -> int:
        """Make these calls one after the other, and say how many connections that took."""

    def events(self, ask: Ask) -> list[float]:
        """When each server-sent event came, in seconds since the first."""

    def abort(self, ask: Ask, size: int) -> None:
        """Read `size` bytes of the answer, then hang up."""

    def close(self) -> None:
        """Let go of everything."""


class Counted:
    """For clients whose connections are counted by the driver: the difference over a few calls."""

    made = 0

    def call(self, ask: Ask) -> Answer:
        raise NotImplementedError

    def connections(self, asks: Sequence[Ask]) -> int:
        self.call(asks[0])  # whatever is left in the pool of earlier tests may be stale, or be for somebody else
        before = self.made
        for ask in asks:
            assert self.call(ask).status == 200
        return 1 + self.made - before


# ---------------------------------------------------------------- curl


class Curl:
    """The command line tool; one process per call, which takes several URLs to reuse a connection."""

    keeps_answer_case = True

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="curl-"))

    def command(self, ask: Ask, *more: str) -> list[str]:
        """The command line of one call."""
        line = ["curl", "--silent", "--show-error", "--globoff", "--path-as-is", "--max-time", f"{PATIENCE:g}", *more]
        if ask.method == "HEAD":
            line.append("--head")
        elif ask.method != "GET" and not (ask.follow and ask.body is not None):
            line += ["--request", ask.method]
        for name, value in ask.headers:
            line += ["--header", f"{name}: {value}"]
        if ask.body is not None:
            (self.folder / "upload").write_bytes(ask.body)
            line += ["--data-binary", f"@{self.folder / 'upload'}"]
            if ask.chunked:
                line += ["--header", "Transfer-Encoding: chunked"]
        if ask.follow:
            line.append("--location")
        return [*line, ask.url]

    def environment(self, ask: Ask) -> dict[str, str]:
        """curl reads its proxy from the environment, as most programs do."""
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        return {**environment, "http_proxy": ask.proxy} if ask.proxy else environment

    def run(self, ask: Ask, *more: str) -> subprocess.CompletedProcess[bytes]:
        """Run it, and insist that it is content."""
        result = subprocess.run(
            self.command(ask, *more), env=self.environment(ask), capture_output=True, timeout=PATIENCE + 5, check=False
        )
        assert result.returncode == 0, result.stderr.decode()
        return result

    def call(self, ask: Ask, *more: str) -> Answer:
        head, body = self.folder / "head", self.folder / "body"
        body.write_bytes(b"")
        end = "%{http_code} %{url_effective}"
        result = self.run(ask, "--dump-header", str(head), "--output", str(body), "--write-out", end, *more)
        status, _, url = result.stdout.decode().partition(" ")
        content = body.read_bytes()
        if ask.method == "HEAD":
            content = content.removeprefix(head.read_bytes())  # for HEAD, curl puts out the head
        blocks = head.read_bytes().decode("latin-1").strip().split("\r\n\r\n")
        headers = [(name, value.strip()) for name, _, value in (x.partition(":") for x in blocks[-1].split("\r\n")[1:])]
        continued = any(block.startswith("HTTP/1.1 100") for block in blocks)
        return Answer(int(status), headers, content, url, continued)

    def connections(self, asks: Sequence[Ask]) -> int:
        more = ["--output", "/dev/null", "--write-out", "%{num_connects} "] * len(asks)
        urls = [ask.url for ask in asks[1:]]
        result = subprocess.run(
            [*self.command(asks[0], *more), *urls], env=self.environment(asks[0]), capture_output=True, check=False
        )
        assert result.returncode == 0, result.stderr.decode()
        counts = [int(number) for number in result.stdout.split()]
        assert len(counts) == len(asks)
        return sum(counts)

    def events(self, ask: Ask) -> list[float]:
        times: list[float] = []
        with subprocess.Popen(
            self.command(ask, "--no-buffer"), env=self.environment(ask), stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            times += [perf_counter() for line in process.stdout if line.startswith(b"data:")]
        return since_first(times)

    def abort(self, ask: Ask, size: int) -> None:
        with subprocess.Popen(self.command(ask), env=self.environment(ask), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert len(process.stdout.read(size)) == size
            process.kill()

    def close(self) -> None:
        shutil.rmtree(self.folder)


# ---------------------------------------------------------------- requests


class Requests(Counted):
    """The library that most Python services use."""

    keeps_answer_case = True

    def __init__(self) -> None:
        self.session = requests.Session()
        self.session.trust_env = False

    def _send(self, ask: Ask, stream: bool = False) -> requests.Response:
        return self.session.request(
            ask.method,
            ask.url,
            headers=dict(ask.headers),
            data=uneven(ask.body) if ask.chunked and ask.body is not None else ask.body,
            allow_redirects=ask.follow,
            proxies={"http": ask.proxy} if ask.proxy else None,
            timeout=PATIENCE,
            stream=stream,
        )

    def call(self, ask: Ask) -> Answer:
        response = self._send(ask)
        self.session.cookies.clear()
        return Answer(response.status_code, list(response.raw.headers.iteritems()), response.content, response.url)

    @property
    def made(self) -> int:
        adapter: Any = self.session.get_adapter("http://")
        managers = [adapter.poolmanager, *adapter.proxy_manager.values()]
        pools = [manager.pools[key] for manager in managers for key in manager.pools.keys()]  # noqa: SIM118 # not a dict
        return sum(pool.num_connections for pool in pools)

    def events(self, ask: Ask) -> list[float]:
        with self._send(ask, stream=True) as response:
            lines = response.iter_lines(chunk_size=None)
            return since_first([perf_counter() for line in lines if line.startswith(b"data:")])

    def abort(self, ask: Ask, size: int) -> None:
        with self._send(ask, stream=True) as response:
            assert len(response.raw.read(size)) == size

    def close(self) -> None:
        self.session.close()


# ---------------------------------------------------------------- httpx


class Httpx(Counted):
    """httpx with its blocking client."""

    keeps_answer_case = True

    def __init__(self) -> None:
        self._clients: dict[str | None, httpx.Client] = {}
        self._ports: set[object] = set()

    def _client(self, ask: Ask) -> httpx.Client:
        if ask.proxy not in self._clients:
            self._clients[ask.proxy] = httpx.Client(proxy=ask.proxy, trust_env=False, timeout=PATIENCE)
        return self._clients[ask.proxy]

    @property
    def made(self) -> int:
        return len(self._ports)

    def call(self, ask: Ask) -> Answer:
        client = self._client(ask)
        body = uneven(ask.body) if ask.chunked and ask.body is not None else ask.body
        request = client.build_request(ask.method, ask.url, headers=list(ask.headers), content=body)
        response = client.send(request, stream=True, follow_redirects=ask.follow)
        # To be asked before the end of the body, as the connection may be closed then.
        self._ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        response.read()
        client.cookies.clear()
        return _of_httpx(response)

    def events(self, ask: Ask) -> list[float]:
        with self._client(ask).stream("GET", ask.url) as response:
            return since_first([perf_counter() for line in response.iter_lines() if line.startswith("data:")])

    def abort(self, ask: Ask, size: int) -> None:
        with self._client(ask).stream("GET", ask.url) as response:
            got = 0
            for piece in response.iter_raw():
                got += len(piece)
                if got >= size:
                    break
            assert got >= size

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


class HttpxAsync(Counted):
    """httpx with its asynchronous client, on an event loop of its own."""

    keeps_answer_case = True

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._clients: dict[str | None, httpx.AsyncClient] = {}
        self._ports: set[object] = set()

    def _client(self, ask: Ask) -> httpx.AsyncClient:
        if ask.proxy not in self._clients:
            self._clients[ask.proxy] = httpx.AsyncClient(proxy=ask.proxy, trust_env=False, timeout=PATIENCE)
        return self._clients[ask.proxy]

    @property
    def made(self) -> int:
        return len(self._ports)

    def call(self, ask: Ask) -> Answer:
        return self._runner.run(self._call(ask))

    async def _call(self, ask: Ask) -> Answer:
        client = self._client(ask)
        body = uneven_async(ask.body) if ask.chunked and ask.body is not None else ask.body
        request = client.build_request(ask.method, ask.url, headers=list(ask.headers), content=body)
        response = await client.send(request, stream=True, follow_redirects=ask.follow)
        self._ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        await response.aread()
        client.cookies.clear()
        return _of_httpx(response)

    def events(self, ask: Ask) -> list[float]:
        async def listen() -> list[float]:
            async with self._client(ask).stream("GET", ask.url) as response:
                return [perf_counter() async for line in response.aiter_lines() if line.startswith("data:")]

        return since_first(self._runner.run(listen()))

    def abort(self, ask: Ask, size: int) -> None:
        async def leave() -> int:
            got = 0
            async with self._client(ask).stream("GET", ask.url) as response:
                async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_raw())) as pieces:
                    while got < size:
                        got += len(await anext(pieces))
            return got

        assert self._runner.run(leave()) >= size

    def close(self) -> None:
        async def leave() -> None:
            for client in self._clients.values():
                await client.aclose()

        self._runner.run(leave())
        self._runner.close()


def _of_httpx(response: httpx.Response) -> Answer:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw]
    return Answer(response.status_code, headers, response.content, str(response.url))


# ---------------------------------------------------------------- aiohttp


class Aiohttp(Counted):
    """aiohttp's client, on an event loop of its own."""

    keeps_answer_case = True

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._session = self._runner.run(self._open())
        self.made = 0

    async def _open(self) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()

        async def created(*_: object) -> None:
            self.made += 1

        trace.on_connection_create_end.append(created)
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=PATIENCE),
            trace_configs=[trace],
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _request(self, ask: Ask, **more: Any) -> Any:
        body: Any = io.BytesIO(ask.body) if ask.body is not None else None  # it warns of large bodies in one piece
        if ask.chunked and ask.body is not None:
            body = uneven_async(ask.body)
        return self._session.request(
            ask.method,
            yarl.URL(ask.url, encoded=True),
            headers=list(ask.headers),
            data=body,
            allow_redirects=ask.follow,
            proxy=ask.proxy,
            **more,
        )

    def call(self, ask: Ask, **more: Any) -> Answer:
        async def call() -> Answer:
            async with self._request(ask, **more) as response:
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers]
                return Answer(response.status, headers, await response.read(), str(response.url))

        return self._runner.run(call())

    def events(self, ask: Ask) -> list[float]:
        async def listen() -> list[float]:
            async with self._request(ask) as response:
                return [perf_counter() async for line in response.content if line.startswith(b"data:")]

        return since_first(self._runner.run(listen()))

    def abort(self, ask: Ask, size: int) -> None:
        async def leave() -> None:
            async with self._request(ask) as response:
                assert len(await response.content.readexactly(size)) == size
                response.close()

        self._runner.run(leave())

    def close(self) -> None:
        self._runner.run(self._session.close())
        self._runner.close()


# ---------------------------------------------------------------- Node


@dataclass
class Node(Counted):
    """A client in a Node process that lives as long as the driver."""

    name: str
    environment: Mapping[str, str]
    made: int = 0
    process: subprocess.Popen[bytes] = field(init=False)

    keeps_answer_case = True

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            ["node", str(NODE / "driver.cjs"), self.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **self.environment},
        )  # fmt: skip

    def _do(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        result: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert "error" not in result, result["error"]
        self.made = result["connections"]
        return result

    def call(self, ask: Ask, *, expect: bool = False) -> Answer:
        body = None if ask.body is None else base64.b64encode(ask.body).decode()
        result = self._do(op="call", **{**vars(ask), "body": body}, expect=expect)
        headers = [(name, value) for name, value in result["headers"]]
        body_in = base64.b64decode(result["body"])
        return Answer(result["status"], headers, body_in, result["url"], result.get("continued", False))

    def events(self, ask: Ask) -> list[float]:
        times: list[float] = self._do(op="events", url=ask.url, proxy=ask.proxy)["times"]
        return [time / 1000 for time in times]

    def abort(self, ask: Ask, size: int) -> None:
        assert self._do(op="abort", url=ask.url, proxy=ask.proxy, bytes=size)["got"] >= size

    def close(self) -> None:
        self.process.communicate(timeout=PATIENCE)


class NodeFetch(Node):
    """The built-in fetch: it shows names of answers in lower case, as its standard says, and knows no proxy."""

    keeps_answer_case = False
