"""Several workers: they share the ports, one that dies is replaced, and somebody answers for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.harness import (
    Answer,
    Client,
    Target,
    eventually,
    exchange,
    get,
    plain,
    request,
    silent,
    slow,
    whole_config,
)
from tests.integration.processes import PROCESS_PATIENCE, SOURCE, Process, running


def config(target: Target, more: str = "") -> str:
    return f"workers: 2\nservices: {{ user: {{ url: '{target.url}', {more} }} }}"


def children(one: Process) -> list[int]:
    path = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


async def calls_by_worker(one: Process) -> dict[str, float]:
    page = (await exchange(one.telemetry, get("/metrics", "Connection: close", host="127.0.0.1"))).body.decode()
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "outrider_requests_total":
                worker = sample.labels["worker"]
                counts[worker] = counts.get(worker, 0) + sample.value
    return counts


async def all_ready(one: Process) -> None:
    await eventually(lambda: sum(line["msg"] == "ready" for line in one.lines) >= 2, "both workers are ready", 20.0)


async def test_workers_share_the_port_and_the_metrics(tmp_path: Path) -> None:
    """Every call is answered by one of them; `/metrics` has each one's series, and status and configuration show."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        clients = [Client(one.port) for _ in range(16)]
        for client in clients:
            await client.__aenter__()
        for client in clients:
            assert (await client.call(get("/user/x"))).status == 200
        counts = await calls_by_worker(one)
        assert sum(counts.values()) == 16
        status = await exchange(one.admin, get("/api/v1/status", "Connection: close", host="localhost"))
        assert set(json.loads(status.body)["workers"]) == {"0", "1"}
        shown = await exchange(one.admin, get("/config", "Connection: close", host="localhost"))
        assert json.loads(shown.body)["config"]["workers"] == 2
        for client in clients:
            await client.__aexit__()


async def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """New connections are served all the while, and readiness does not blink."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        victim = children(one)[0]
        os.kill(victim, signal.SIGKILL)
        for _ in range(50):
            assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 200
            assert (await exchange(one.telemetry, get("/readyz", "Connection: close", host="127.0.0.1"))).status == 200
        await eventually(lambda: len(children(one)) == 3 and victim not in children(one), "a new worker")
        assert one.said("a process ended and is started again")


async def test_sigterm_drains_every_worker(tmp_path: Path) -> None:
    """Calls in flight on both end well, and so does the process."""
    async with Target(slow(0.5)) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        calls = [asyncio.create_task(exchange(one.port, get("/user/x", "Connection: close"))) for _ in range(8)]
        await eventually(lambda: target.busy == 8, "all calls at the target")
        one.signal(signal.SIGTERM)
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 8
        assert await one.exit() == 0
    assert sum(line["msg"] == "stopped" for line in one.lines) == 2


async def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    """Killed outright, it takes all of them along: the ports are free for the next one."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        left = children(one)
        one.process.kill()
        await one.process.wait()
        await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "all children have gone")


async def test_orders_to_the_admin_port_reach_all(tmp_path: Path) -> None:
    """`/-/drain` ends the whole process, cleanly."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        order = b"POST /-/drain HTTP/1.1\r\nHost: localhost\r\nX-Outrider: 1\r\nContent-Length: 0\r\n\r\n"
        assert (await exchange(one.admin, order)).status == 202
        assert await one.exit() == 0


async def look(one: Process, path: str, *lines: str, port: str = "admin", host: str = "localhost") -> Answer:
    return await exchange(getattr(one, port), get(path, "Connection: close", *lines, host=host))


async def order(one: Process, path: str, body: bytes = b"", method: str = "POST") -> Answer:
    return await exchange(
        one.admin, request(method, path, body, "X-Outrider: 1", "Connection: close", host="localhost")
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signals_to_the_whole_group_are_the_supervisors(tmp_path: Path, number: signal.Signals) -> None:
    """A service manager and a terminal signal every process: that is one signal, and no call is lost."""
    async with Target(slow(0.5)) as target, running(tmp_path, config(target), group=True) as one:
        await all_ready(one)
        calls = [asyncio.create_task(exchange(one.port, get("/user/x", "Connection: close"))) for _ in range(8)]
        await eventually(lambda: target.busy == 8, "all calls at the target")
        one.signal_group(number)
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 8
        if number != signal.SIGHUP:
            assert await one.exit() == 0
    assert not one.said("stopped by a second signal")


async def test_an_order_to_drain_and_a_signal_to_all(tmp_path: Path) -> None:
    """`/-/drain`, and then SIGTERM to every process: the calls end well."""
    async with Target(slow(0.6)) as target, running(tmp_path, config(target), group=True) as one:
        await all_ready(one)
        calls = [asyncio.create_task(exchange(one.port, get("/user/x", "Connection: close"))) for _ in range(8)]
        await eventually(lambda: target.busy == 8, "all calls at the target")
        assert (await order(one, "/-/drain")).status == 202
        await eventually(lambda: sum(line["msg"] == "draining" for line in one.lines) == 2, "both drain")
        one.signal_group(signal.SIGTERM)
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 8
        assert await one.exit() == 0


async def test_the_exit_code_tells_of_calls_cut_off(tmp_path: Path) -> None:
    """When the drain limit cuts a call off in any worker, the exit code is 1."""
    text = "shutdown: { drain: 200ms }\n"
    async with Target(silent) as target, running(tmp_path, text + config(target)) as one:
        await all_ready(one)
        async with Client(one.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: target.busy, "the call at the target")
            one.signal(signal.SIGTERM)
            assert await one.exit() == 1


async def test_a_second_signal_stops_all_workers(tmp_path: Path) -> None:
    """At once, with exit code 1."""
    async with Target(silent) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        async with Client(one.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: target.busy, "the call at the target")
            one.signal(signal.SIGTERM)
            await eventually(lambda: sum(line["msg"] == "draining" for line in one.lines) == 2, "both drain")
            one.signal(signal.SIGTERM)
            assert await one.exit() == 1


async def test_workers_need_no_file_system(tmp_path: Path) -> None:
    """No temporary folder can be written, and its name is longer than the path of a socket may be: both start, and the
    front answers for them."""
    nowhere = {"TMPDIR": f"/nowhere/{'x' * 200}", "HOME": "/nowhere"}
    async with Target(plain()) as target, running(tmp_path, config(target), environment=nowhere) as one:
        await all_ready(one)
        assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 200
        assert set(json.loads((await look(one, "/api/v1/status")).body)["workers"]) == {"0", "1"}
        one.signal(signal.SIGTERM)
        assert await one.exit() == 0
    assert not one.said("a process ended and is started again")


async def kill_and_wait(one: Process, *victims: int) -> None:
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    ready = sum(line["msg"] == "ready" for line in one.lines)
    await eventually(
        lambda: sum(line["msg"] == "ready" for line in one.lines) >= ready + len(victims), "new workers", 20.0
    )


CIRCUIT = "user GET /items/{id}"
ROUTED = "routes: [{ match: 'GET /items/{id}', circuit_breaker: { consecutive_failures: 3 } }]"


async def states(one: Process, name: str) -> list[str]:
    workers = json.loads((await look(one, "/api/v1/circuits")).body)["workers"]
    return [f"{page['circuits'][name]['state']} {page['circuits'][name].get('held', '')}" for page in workers.values()]


async def test_an_order_holds_for_workers_to_come(tmp_path: Path) -> None:
    """A circuit held by hand, also one of a route with braces in its name, stays held when a worker dies; reset counts
    for its successor, too."""
    async with Target(plain()) as target, running(tmp_path, config(target, ROUTED)) as one:
        await all_ready(one)
        for name in ("user", CIRCUIT):
            assert (await order(one, f"/api/v1/circuits/{quote(name, safe='')}/open")).status == 200
        workers = children(one)[:2]  # the front is the last
        await kill_and_wait(one, workers[0])
        assert await states(one, "user") == await states(one, CIRCUIT) == ["open open"] * 2
        for _ in range(8):
            assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 503
        assert (await order(one, "/api/v1/circuits/user/reset")).status == 200
        await kill_and_wait(one, workers[1])
        assert await states(one, "user") == ["closed "] * 2
        assert await states(one, CIRCUIT) == ["open open"] * 2


async def test_a_fault_holds_for_workers_to_come(tmp_path: Path) -> None:
    """A fault goes on in a worker that was started after it, for the time that is left."""
    text = "admin: { listen: '127.0.0.1:0', allow_faults: true }\n"
    async with Target(plain()) as target, running(tmp_path, text + config(target)) as one:
        await all_ready(one)
        fault = json.dumps({"service": "user", "kind": "status", "status": 418, "for": "30s"}).encode()
        assert (await order(one, "/api/v1/faults", fault)).status == 200
        await kill_and_wait(one, children(one)[0])
        pages = json.loads((await look(one, "/api/v1/faults")).body)["workers"]
        assert [0 < page["faults"][0]["seconds_left"] < 30 for page in pages.values()] == [True, True]
        assert (await order(one, "/api/v1/faults?service=user", method="DELETE")).status == 200


async def test_an_order_that_no_worker_takes_is_an_error(tmp_path: Path) -> None:
    """While all workers stand still, orders and metrics are answered with 503. What a worker refuses is refused."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        refused = await order(one, "/api/v1/circuits/nothing/open")
        assert refused.status == 404
        assert "there is no circuit" in json.loads(refused.body)["error"]
        workers = children(one)[:2]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            answers = await asyncio.gather(
                order(one, "/api/v1/circuits/user/open"),
                look(one, "/metrics", port="telemetry", host="127.0.0.1"),
                look(one, "/readyz", port="telemetry", host="127.0.0.1"),
                look(one, "/api/v1/circuits"),
            )
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        assert [answer.status for answer in answers] == [503] * 4
        # What was reported as not taken is not done later.
        await asyncio.sleep(0.1)
        assert await states(one, "user") == ["closed "] * 2


OPENMETRICS = "application/openmetrics-text"
PROCESSES = ("0", "1", "supervisor", "front")


def check_page(answer: Answer, openmetrics: bool) -> None:
    page = answer.body.decode()
    if openmetrics:
        assert answer.get("content-type") == f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
        families = list(openmetrics_families(page))
        assert page.endswith("\n# EOF\n")
        assert "# TYPE outrider_requests counter" in page
    else:
        assert answer.get("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        families = list(text_string_to_metric_families(page))
        assert "# TYPE outrider_requests_total counter" in page
        assert "# HELP outrider_requests_total Finished calls" in page
    by_name = {family.name: family for family in families}
    requests = by_name["outrider_requests"]
    assert (requests.type, requests.documentation) == ("counter", "Finished calls")
    assert by_name["outrider_request_duration_seconds"].type == "histogram"
    assert all(sample.labels["worker"] in PROCESSES for family in families for sample in family.samples)
    assert sum(sample.value for sample in requests.samples) == 4
    routes = {sample.labels["route"] for sample in by_name["outrider_request_duration_seconds"].samples}
    assert "GET /a/{id}" in routes


async def test_metrics_of_workers_are_as_the_library_writes_them(tmp_path: Path) -> None:
    """Names, types, help, escapes and both formats are those of one worker, and each series has its `worker`."""
    routed = "routes: [{ match: 'GET /a/{id}' }]"
    async with Target(plain()) as target, running(tmp_path, config(target, routed)) as one:
        await all_ready(one)
        for _ in range(4):
            assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 200
        check_page(await look(one, "/metrics", port="telemetry", host="127.0.0.1"), openmetrics=False)
        accept = f"Accept: {OPENMETRICS};version=1.0.0;q=0.6,text/plain;q=0.3"
        check_page(await look(one, "/metrics", accept, port="telemetry", host="127.0.0.1"), openmetrics=True)


async def test_a_worker_that_cannot_start_ends_the_whole(tmp_path: Path) -> None:
    """What would fail again and again at the start is said, and is the end, as with one worker."""
    file = tmp_path / "outrider.yaml"
    file.write_text(whole_config("workers: 2\nservices: { user: 'http://127.0.0.1:9' }"))
    code = (
        "import outrider.supervisor as supervisor\n"
        "from outrider.__main__ import main\n"
        "from outrider.errors import StartError\n"
        "def fail(*_): raise StartError('it cannot be')\n"
        "supervisor.run_worker = fail\n"
        "main()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "run", "-c", str(file),
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    async with asyncio.timeout(PROCESS_PATIENCE):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert b"outrider: it cannot be\n" in said
    assert b"started again" not in said


_CANNOT = """
import outrider.supervisor as supervisor
from outrider.__main__ import main
from outrider.errors import StartError
def fail(*_): raise StartError('it cannot be')
supervisor.run_worker = fail
main()
"""


def fill(writing: int) -> None:
    """Make a pipe take nothing more."""
    os.set_blocking(writing, False)
    for piece in (b"x" * 4096, b"x"):
        with contextlib.suppress(BlockingIOError):
            while os.write(writing, piece):
                pass
    os.set_blocking(writing, True)


@asynccontextmanager
async def with_a_log_like(folder: Path, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int, int]]:
    """The program with a pipe for its log, of which both ends are ours."""
    (folder / "outrider.yaml").write_text(whole_config("workers: 2\nservices: { user: 'http://127.0.0.1:9' }"))
    reading, writing = os.pipe()
    if arguments[0] == "-c":
        fill(writing)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, "run", "-c", str(folder / "outrider.yaml"),
        stderr=writing, env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    try:
        yield process, reading, writing
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(reading)
        os.close(writing)


async def test_a_worker_that_cannot_start_and_a_log_that_is_not_read(tmp_path: Path) -> None:
    """The reason cannot be written, and everything ends all the same."""
    async with with_a_log_like(tmp_path, "-c", _CANNOT) as (process, _, _), asyncio.timeout(PROCESS_PATIENCE):
        assert await process.wait() == 1


async def test_lines_that_the_supervisor_drops_are_in_the_metric(tmp_path: Path) -> None:
    """Its log is a full pipe when a worker dies, so it cannot say so, and the page of all workers counts that."""
    async with with_a_log_like(tmp_path, "-m", "outrider") as (process, reading, writing):
        text = b""
        async with asyncio.timeout(PROCESS_PATIENCE):
            while text.count(b'"msg": "ready"') + text.count(b'"msg":"ready"') < 2:
                text += await asyncio.to_thread(os.read, reading, 65536)
        ready = next(line for line in map(json.loads, text.splitlines()) if line["msg"] == "ready")
        fill(writing)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)

        async def told() -> bool:
            page = await exchange(
                ready["ports"]["telemetry.listen"], get("/metrics", "Connection: close", host="127.0.0.1")
            )
            found = [line for line in page.body.decode().splitlines() if 'dropped_total{worker="supervisor"}' in line]
            return bool(found) and float(found[0].split()[1]) > 0

        async with asyncio.timeout(PROCESS_PATIENCE):
            while not await told():
                await asyncio.sleep(0.1)


async def test_a_hung_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that gives no sign of life is killed, and another one takes its place."""
    code = "import sys, outrider.supervisor as s; s._HUNG = 3.0; from outrider.__main__ import main; main()"
    async with Target(plain()) as target, running(tmp_path, config(target), code=code) as one:
        await all_ready(one)
        hung = children(one)[0]
        os.kill(hung, signal.SIGSTOP)
        await eventually(lambda: hung not in children(one) and len(children(one)) == 3, "a new worker", 20.0)
        assert one.said("a process gives no sign of life and is killed")
        assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 200


async def test_the_front_is_replaced_too(tmp_path: Path) -> None:
    """Killed, it is started again, and answers for the workers as before; calls do not notice."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        front = children(one)[-1]
        os.kill(front, signal.SIGKILL)
        assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 200
        answer = await look(one, "/readyz", port="telemetry", host="127.0.0.1")  # waits in the queue until it is back
        assert answer.status == 200
        assert front not in children(one)


async def test_workers_that_die_again_and_again_are_started_more_slowly(tmp_path: Path) -> None:
    """The pause doubles, so that a storm of restarts does not take the machine; signals are heard meanwhile."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)

        def deaths() -> list[int]:
            return [line["again_after_ms"] for line in one.lines if line["msg"].startswith("a process ended")]

        front = children(one)[-1]
        for number in range(1, 4):
            for victim in set(children(one)) - {front}:
                os.kill(victim, signal.SIGKILL)
            await eventually(lambda number=number: len(deaths()) == 2 * number, "it is noticed", 20.0)
            await eventually(lambda: len(children(one)) == 3, "they are started", 20.0)
        assert deaths() == [200, 200, 400, 400, 800, 800]
        one.signal(signal.SIGTERM)
        await one.exit()


async def test_it_runs_with_closed_streams(tmp_path: Path) -> None:
    """Without standard input and output, as some service managers start it, descriptors are not mixed up."""
    async with Target(plain()) as target:
        file = tmp_path / "outrider.yaml"
        file.write_text(whole_config(config(target)))
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f"exec '{sys.executable}' -m outrider run -c '{file}' <&- >&-",
            stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        one = Process(process)
        try:
            async with asyncio.timeout(PROCESS_PATIENCE):
                await one.ready(0.0)
            await all_ready(one)
            assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 200
            assert set(json.loads((await look(one, "/api/v1/status")).body)["workers"]) == {"0", "1"}
            one.signal(signal.SIGTERM)
            assert await one.exit() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_limits_are_divided(tmp_path: Path) -> None:
    """`max_in_flight: 2` with two workers is two in all, not four."""
    async with Target(slow(0.3)) as target, running(tmp_path, config(target, "max_in_flight: 2")) as one:
        await all_ready(one)
        calls = [exchange(one.port, get("/user/x", "Connection: close")) for _ in range(12)]
        await asyncio.gather(*calls)
    assert target.most_busy <= 2
