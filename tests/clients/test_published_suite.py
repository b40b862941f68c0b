"""Test suites that others have published, for their own clients: run through a port of Outrider they come out as they
do against their own servers.

Each suite is run twice at the same time, once direct and once with Outrider before its server, and compared test by
test. What differs must be named here, with its reason.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.clients.conftest import running
from tests.servers import free_port

PUBLISHED = Path(__file__).parent / "published"
PATIENCE = 50

PROXY_AUTHORIZATION = (
    "Proxy-Authorization is for the first proxy on the way, not for the target (RFC 9110 §11.7.2): Outrider is that"
    " proxy, and keeps it to itself as it does all fields of a single hop (§7.6.1)"
)
# These come out differently only when the machine is busy.
SOMETIMES = {
    # It expects each read to give one chunk of the target's; chunks are between two neighbours (RFC 9112 §7.1),
    # and those that arrive together leave together.
    "TestConnectionPool::test_stream_keepalive",
}
ADDED_FIELDS = (
    "the test compares all fields that the target saw from the n-th on; a proxy adds Via (RFC 9110 §7.6.3) and Outrider"
    " its context, and writes Content-Length itself, so that fields of different names change places, which has no"
    " meaning (§5.3)"
)


@dataclass(frozen=True)
class Suite:
    """A published suite, what of it is run, and the tests that are known to come out differently, with the reason.

    `least` is the number of tests that must pass, `calls` how many HTTP calls must have gone through Outrider.
    """

    name: str
    version: str
    tests: Sequence[str]
    plugins: Sequence[str]
    least: int
    calls: int
    different: dict[str, str]


SUITES = [
    Suite(
        "requests",
        "2.34.2",
        # Left out: time-outs, which connect to addresses of other machines or wait for long, and what is about TLS
        # alone and takes seconds.
        ["tests/test_requests.py", "-k", "not different_connection_pool and (not timeout or encoded_methods)"],
        ["pytest_httpbin.plugin", "pytest_mock"],
        310,
        230,
        {"TestRequests::test_proxy_authorization_preserved_on_request": PROXY_AUTHORIZATION},
    ),
    Suite(
        "urllib3",
        "2.8.0",
        # Left out: time-outs on raw sockets and to other machines, source addresses, and Retry-After, which sleeps.
        [
            *(f"test/with_dummyserver/test_{name}.py" for name in ("connectionpool", "poolmanager", "connection")),
            *("-k", "not Timeouts and not RetryAfter and not source_address_error"),
        ],
        ["pytest_timeout", "pytest_socket"],
        195,
        300,
        {
            "TestPoolManager::test_redirect_cross_host_no_remove_headers": PROXY_AUTHORIZATION,
            "TestPoolManager::test_redirect_cross_host_set_removed_headers": PROXY_AUTHORIZATION,
            "TestPoolManager::test_headers_http_header_dict": ADDED_FIELDS,
            "TestPoolManager::test_merge_headers_with_pool_manager_headers": ADDED_FIELDS,
            "TestPoolManager::test_headers_http_multi_header_multipart": ADDED_FIELDS,
        },
    ),
]


def pip(*arguments: str) -> None:
    """Run pip, or skip if it cannot get what it is to get."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    if result.returncode:
        pytest.skip(f"pip could not get the suites: {result.stderr[-500:]}")


@pytest.fixture(scope="module")
def work(request: pytest.FixtureRequest) -> Path:
    """The folder with the suites unpacked and, in `site`, what they need; made once, then kept in pytest's cache."""
    requirements = PUBLISHED / "requirements.txt"
    wanted = requirements.read_text() + str(SUITES) + sys.version
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir(f"published-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}")
    done = folder / "done"
    if not done.exists():
        pip("install", "--upgrade", "--target", str(folder / "site"), "--requirement", str(requirements))
        for suite in SUITES:
            wish = f"{suite.name}=={suite.version}"
            pip("download", "--no-deps", "--no-binary", suite.name, "--dest", str(folder), wish)
            with tarfile.open(folder / f"{suite.name}-{suite.version}.tar.gz") as archive:
                archive.extractall(folder, filter="data")
        done.touch()
    return folder


class Run:
    """A run of a suite in a process of its own, through a port of Outrider if there is one."""

    def __init__(self, suite: Suite, work: Path, report: Path, through: tuple[int, int] | None = None) -> None:
        source = work / f"{suite.name}-{suite.version}"
        copy = report.with_suffix("")
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("docs"))
        path = [work / "site", copy / "src", copy, *([PUBLISHED] if through else [])]
        plugins = [*suite.plugins, *(["through"] if through else [])]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if through:
            target, port = map(str, through)
            environment |= {"SUITE": suite.name, "TARGET_PORT": target, "OUTRIDER_PORT": port}
            environment["HTTPBIN_HTTP_PORT"] = target
        options = [*("-q", "-p", "no:cacheprovider"), *(f"-p{plugin}" for plugin in plugins), f"--junitxml={report}"]
        self._report = report
        self._log = report.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, *suite.tests],
                cwd=copy, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def outcomes(self) -> dict[str, str]:
        """The outcome of every test, by `Class::test`."""
        try:
            code = self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
        assert code in (0, 1), self._log.read_text()[-3000:]
        outcomes = {}
        for case in ElementTree.parse(self._report).iter("testcase"):
            kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
            group = (case.get("classname") or "").rpartition(".")[2]
            outcomes[f"{group}::{case.get('name')}"] = min(kinds) if kinds else "passed"
        return outcomes

    def told(self, test: str) -> str:
        """What pytest said at the end, as far as it is about a test."""
        return "\n".join(line for line in self._log.read_text().splitlines() if test.rpartition("::")[2] in line)


CONFIG = """
service: booking
instance: booking-1
listen: 127.0.0.1:0
admin: {{ listen: 127.0.0.1:0 }}
telemetry: {{ listen: 127.0.0.1:0 }}
defaults:
  retry: false              # the suites count how often their servers are called,
  circuit_breaker: false    # and answer with errors on purpose
  timeout: 60s
  attempt_timeout: 60s
  idle_timeout: 200ms       # their servers wait for idle connections when they stop
browsers: {{ hosts: [httpbin.org] }}  # one calls its server by this name
services:
  suite: {{ url: "http://127.0.0.1:{}", port: 0 }}
"""


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_published_suite_comes_out_the_same(suite: Suite, work: Path, tmp_path: Path) -> None:
    """Every test of the suite that passes direct passes through Outrider, and every other one fails as it does direct,
    save for those whose difference is what a proxy is for."""
    target = free_port()
    with running(tmp_path, CONFIG.format(target)) as outrider:
        direct = Run(suite, work, tmp_path / "direct.xml")
        through = Run(suite, work, tmp_path / "through.xml", (target, outrider.ports["services.suite.port"]))
        expected, found = direct.outcomes(), through.outcomes()
        calls = outrider.metric("outrider_requests_total")
        assert outrider.metric("outrider_internal_errors_total") == 0
    passed = sum(outcome == "passed" for outcome in expected.values())
    print(f"{suite.name} {suite.version}: {passed} of {len(expected)} tests passed direct, {calls:.0f} calls through")
    different = {test for test in expected.keys() | found.keys() if expected.get(test) != found.get(test)} - SOMETIMES
    unexplained = different - suite.different.keys()
    assert not unexplained, "\n".join(
        f"{test}: {expected.get(test)} direct, {through.told(test)}" for test in unexplained
    )
    assert different == suite.different.keys(), "no longer different: take it off the list"
    assert passed >= suite.least
    assert calls >= suite.calls
