"""One target and one Outrider, both processes of their own, and the clients that call through them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

import httpx
import pytest

from tests.clients.drivers import NODE, Aiohttp, Ask, Curl, Driver, Httpx, HttpxAsync, Node, NodeFetch, Requests

ROOT = Path(__file__).parents[2]
_SOURCE = Path(os.environ.get("OUTRIDER_COMPILED") or ROOT / "src")


def need(*programs: str) -> None:
    """Skip the test if one of these programs is not here."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


# ---------------------------------------------------------------- processes


@dataclass
class Outrider:
    """A running `python -m outrider run`."""

    process: subprocess.Popen[str]
    ports: dict[str, int]
    log: list[dict[str, Any]]

    @property
    def port(self) -> int:
        return self.ports["listen"]

    def metric(self, name: str) -> float:
        """The sum of a metric's samples. Asking does not count as a call."""
        text = httpx.get(f"http://127.0.0.1:{self.ports['telemetry.listen']}/metrics", trust_env=False).text
        lines = (line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def wait_for(self, name: str, value: float, within: float = 5.0) -> None:
        """Wait until a metric has this value."""
        end = monotonic() + within
        while (found := self.metric(name)) != value:
            assert monotonic() < end, f"{name} is {found}, not {value}"
            sleep(0.01)


@contextmanager
def running(folder: Path, text: str) -> Iterator[Outrider]:
    """Run Outrider until the block ends."""
    file = folder / "outrider.yaml"
    file.write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "outrider", "run", "-c", str(file)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(_SOURCE)},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(json.loads(line))
            if log[-1]["msg"] == "ready":
                break
        else:
            pytest.fail(f"Outrider did not start: {log}")
        lines = process.stderr
        reader = threading.Thread(target=lambda: log.extend(map(json.loads, lines)))
        reader.start()
        yield Outrider(process, log[-1]["ports"], log)
        process.terminate()
        assert process.wait(10) == 0
        reader.join()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def target() -> Iterator[int]:
    """The port of the target."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.clients.target"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


@pytest.fixture(scope="session")
def outrider(target: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outrider]:
    """Outrider before the target, known by path prefix, by port and by host."""
    config = f"""
service: booking
instance: booking-1
listen: 127.0.0.1:0
admin: {{ listen: 127.0.0.1:0 }}
telemetry: {{ listen: 127.0.0.1:0 }}
services:
  target:
    url: http://127.0.0.1:{target}
    port: 0
    hosts: [target.test]
    circuit_breaker: false
    routes:
      - {{ match: GET /hang, timeout: 200ms }}
      - {{ match: GET /ws-short, timeout: 200ms }}
"""
    with running(tmp_path_factory.mktemp("clients"), config) as one:
        yield one
        errors = [line for line in one.log if line["level"] == "error"]
        assert not errors, errors


# ---------------------------------------------------------------- ways and clients


@dataclass(frozen=True)
class Way:
    """A way to name the service: how a path becomes a URL, and the proxy to send it through, if any."""

    name: str
    base: str
    proxy: str | None = None

    def ask(self, path: str, **more: Any) -> Ask:
        return Ask(self.base + path, proxy=self.proxy, **more)


WAYS = ("prefix", "port", "proxy")
Test = TypeVar("Test", bound=Callable[..., object])


def only(*ways: str) -> Callable[[Test], Test]:
    """For a promise that has a meaning for some ways only."""

    def mark(test: Test) -> Test:
        test.ways = ways
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with `client` and `way` is run for every client and each way it knows."""
    if "client" in metafunc.fixturenames:
        ways = getattr(metafunc.function, "ways", WAYS)
        pairs = [(name, way) for name in CLIENTS for way in ways if way != "proxy" or name not in WITHOUT_PROXY]
        metafunc.parametrize(("client", "way"), pairs, indirect=True, ids=["-".join(pair) for pair in pairs])


@pytest.fixture
def way(request: pytest.FixtureRequest, outrider: Outrider) -> Way:
    """A way to name the service."""
    listen = f"http://127.0.0.1:{outrider.port}"
    if request.param == "prefix":
        return Way("prefix", f"{listen}/target")
    if request.param == "port":
        return Way("port", f"http://127.0.0.1:{outrider.ports['services.target.port']}")
    return Way("proxy", "http://target.test", listen)


@pytest.fixture(scope="session")
def node_packages(request: pytest.FixtureRequest) -> Path:
    """The folder with axios, ws, express and fastify, as the lock file has them; installed once, then kept in the cache
    of pytest."""
    need("node", "npm")
    cache = request.config.cache
    assert cache is not None
    wanted = hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()[:12]
    folder = cache.mkdir(f"node-{wanted}")
    done = folder / "done"
    if not done.exists():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm reaches no registry")
        if result.returncode:
            pytest.skip(f"npm could not install the packages: {result.stderr[-300:]}")
        done.touch()
    return folder / "node_modules"


def _curl(request: pytest.FixtureRequest) -> Driver:
    need("curl")
    return Curl()


def _node(kind: type[Node], name: str) -> Callable[[pytest.FixtureRequest], Driver]:
    def make(request: pytest.FixtureRequest) -> Driver:
        need("node")
        return kind(name, {})

    return make


def _axios(request: pytest.FixtureRequest) -> Driver:
    return Node("axios", {"NODE_PATH": str(request.getfixturevalue("node_packages"))})


CLIENTS: dict[str, Callable[[pytest.FixtureRequest], Driver]] = {
    "curl": _curl,
    "requests": lambda _: Requests(),
    "httpx": lambda _: Httpx(),
    "httpx-async": lambda _: HttpxAsync(),
    "aiohttp": lambda _: Aiohttp(),
    "node-http": _node(Node, "http"),
    "node-fetch": _node(NodeFetch, "fetch"),
    "axios": _axios,
}


WITHOUT_PROXY = ("node-fetch",)


@pytest.fixture(scope="session")
def clients(outrider: Outrider) -> Iterator[dict[str, Driver]]:
    """The clients so far; each lives through all of its tests, as it would in a service. They leave before Outrider
    does, which waits for them."""
    drivers: dict[str, Driver] = {}
    yield drivers
    for driver in drivers.values():
        driver.close()


@pytest.fixture
def client(request: pytest.FixtureRequest, clients: dict[str, Driver]) -> Driver:
    """A client."""
    if request.param not in clients:
        clients[request.param] = CLIENTS[request.param](request)
    return clients[request.param]
