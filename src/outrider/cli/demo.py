"""`outrider demo`: the booking system with and without Outrider, on the same faults.

The story: user-service fails 30 % of the time throughout; payment-service takes three seconds over every charge for
a while. Bookings arrive at a fixed rate, half of them at a booking-service that calls its dependencies directly, half
at one (the same code) that calls them through Outrider. At the end the promises are checked; only if all held is the
exit code 0.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import click
from aiohttp import ClientError, ClientSession, ClientTimeout
from rich.console import Console
from rich.table import Table

from outrider.errors import EXIT_FAILED, EXIT_OK

DIRECT, THROUGH = "booking", "booking-outrider"
USER_FAILS = 0.3
PAYMENT_DELAY = 3.0
# Names in the order of the story, and each one's share of the time.
PHASES = (("users fail 30 %", 0.3), ("and payments hang", 0.25), ("payments healed", 0.45))
DEPENDENCIES = ("auth", "user", "workspace", "payment", "notification", "reporting", "admin")
INJECTED = ("x-service-name", "x-service-id", "x-api-key", "x-correlation-id", "traceparent", "x-request-timeout-ms")


@dataclass
class Lane:
    """What came of the bookings of one booking-service, phase by phase."""

    made: dict[str, list[tuple[bool, float]]] = field(default_factory=lambda: {name: [] for name, _ in PHASES})

    def rate(self, *phases: str) -> float:
        """Share of bookings that succeeded; of all phases if none is named."""
        results = [ok for name in phases or self.made for ok, _ in self.made[name]]
        return sum(results) / len(results) if results else 0.0

    def failures(self, phase: str) -> int:
        """Bookings that did not succeed."""
        return sum(not ok for ok, _ in self.made[phase])

    def slower(self, phase: str, limit: float) -> int:
        """Bookings that took longer than so many seconds."""
        return sum(seconds > limit for _, seconds in self.made[phase])

    def median(self, phase: str) -> float:
        """Seconds."""
        times = [seconds for _, seconds in self.made[phase]]
        return statistics.median(times) if times else 0.0

    def p99(self, phase: str) -> float:
        """Seconds within which 99 % of the bookings had an answer."""
        times = sorted(seconds for _, seconds in self.made[phase])
        return times[math.ceil(0.99 * len(times)) - 1] if times else 0.0


def tolerated(share: float, number: int) -> int:
    """How many of `number` bookings may be exceptions although only this share of all bookings are: more of them would
    be in at most one run of a thousand. Of a small sample, `1 %` allows none, and one would be bad luck."""
    at_most = 0.0
    for count in range(number + 1):
        at_most += math.comb(number, count) * share**count * (1 - share) ** (number - count)
        if at_most >= 0.999:
            return count
    return number


@click.command(name="demo")
@click.option("--seconds", default=9.0, show_default=True, help="How long bookings arrive.")
@click.option("--rate", default=40, show_default=True, help="Bookings per second, for each of the two.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON only.")
def command(seconds: float, rate: int, as_json: bool) -> None:
    """Show on a small booking system what Outrider does. Exit code 0 only if its promises held."""
    console = Console(stderr=as_json, quiet=as_json, highlight=False)
    result = asyncio.run(_tell(console, seconds, rate))
    if as_json:
        click.echo(json.dumps(result, indent=2))
    sys.exit(EXIT_OK if all(result["promises"].values()) else EXIT_FAILED)


def booking_folder() -> Path:
    """Where the example is: inside the installed package, or in the source tree."""
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "examples" / "booking", here.parents[3] / "examples" / "booking"):
        if (folder / "services.py").is_file():
            return folder
    raise click.ClickException("the booking example is not installed; reinstall Outrider")


async def _tell(console: Console, seconds: float, rate: int) -> dict[str, Any]:
    folder = booking_folder()
    async with (
        _services(folder) as urls,
        _outrider(folder, urls) as sidecar,
        ClientSession(timeout=ClientTimeout(total=10)) as session,
    ):
        proxied = {name: f"{sidecar['listen']}/{name}" for name in DEPENDENCIES}
        await _post(session, f"{urls[THROUGH]}/_targets", proxied)
        console.print(f"[bold]8 services up[/], Outrider beside booking-service on {sidecar['listen']}")
        console.print(f"asking for {rate} bookings/s at each of two booking-services, {seconds:g} s in all:")
        console.print("  [cyan]direct[/]            POST /bookings -> auth, user, workspace, payment, ... as they are")
        console.print("  [cyan]through outrider[/]  the same code, the same calls, to 127.0.0.1\n")
        lanes = await _story(console, session, urls, seconds, rate)
        await _get(session, f"{proxied['admin']}/admin/overview")
        seen = {name: await _get(session, f"{urls[name]}/_seen") for name in DEPENDENCIES}
        metrics = await _metrics(session, sidecar["telemetry"])
    result = _judge(lanes, seen, metrics)
    _show(console, lanes, seen, metrics, result)
    return result


async def _story(
    console: Console, session: ClientSession, urls: dict[str, str], seconds: float, rate: int
) -> dict[str, Lane]:
    """Bookings at a fixed rate in both lanes, whatever becomes of the earlier ones (open loop)."""
    lanes = {DIRECT: Lane(), THROUGH: Lane()}
    await _post(session, f"{urls['user']}/_fault", {"share": USER_FAILS, "status": 503})
    number = 0
    for phase, share in PHASES:
        delay = {"delay": PAYMENT_DELAY} if phase == PHASES[1][0] else {}
        await _post(session, f"{urls['payment']}/_fault", delay)
        console.print(f"  ... {phase}")
        tasks: list[asyncio.Task[None]] = []
        end = monotonic() + seconds * share
        due = monotonic()
        while due < end:
            await asyncio.sleep(max(0.0, due - monotonic()))
            for name, lane in lanes.items():
                tasks.append(asyncio.create_task(_book(session, urls[name], lane.made[phase], number)))
            number += 1
            due += 1 / rate
        await asyncio.gather(*tasks)  # every booking belongs to one phase
    return lanes


async def _book(session: ClientSession, url: str, results: list[tuple[bool, float]], number: int) -> None:
    began = monotonic()
    headers = {"x-correlation-id": f"demo-{number}", "x-user-id": f"user-{number % 7}"}
    try:
        async with session.post(f"{url}/bookings", json={"user": number, "workspace": 1}, headers=headers) as answer:
            await answer.read()
            ok = answer.status == 201
    except (ClientError, TimeoutError):
        ok = False
    results.append((ok, monotonic() - began))


def _judge(lanes: dict[str, Lane], seen: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    direct, through = lanes[DIRECT], lanes[THROUGH]
    first, slow, last = (name for name, _ in PHASES)
    hanging = direct.median(slow) / 2
    promises = {
        "at least 99 % of bookings succeed while only user-service misbehaves": (
            through.failures(first) <= tolerated(0.01, len(through.made[first]))
        ),
        "more bookings succeed through Outrider than directly": through.rate() > direct.rate(),
        "99 % of bookings do not wait for a hanging payment-service": (
            through.slower(slow, hanging) <= tolerated(0.01, len(through.made[slow]))
        ),
        "the payment circuit opened, and closed again": (
            metrics["transitions"]["payment", "closed", "open"] > 0
            and metrics["transitions"]["payment", "half_open", "closed"] > 0
        ),
        "no booking was charged twice": seen["payment"]["charged_twice"] == 0,
        "user-service was retried, within the budget": 0 < metrics["retries"]["user"] <= 0.8 * seen["user"]["count"],
        "credentials and context reached every service": all(
            header in seen[name]["headers"] for name in DEPENDENCIES for header in INJECTED
        ),
    }
    return {
        "success": {"direct": direct.rate(), "through_outrider": through.rate()},
        "by_phase": {
            name: {"direct": direct.rate(name), "through_outrider": through.rate(name)} for name in (first, slow, last)
        },
        "p99_seconds_while_payments_hang": {"direct": direct.p99(slow), "through_outrider": through.p99(slow)},
        "promises": promises,
    }


def _show(
    console: Console, lanes: dict[str, Lane], seen: dict[str, Any], metrics: dict[str, Any], result: dict[str, Any]
) -> None:
    console.print("\n[bold]What each service received[/]")
    for name in DEPENDENCIES:
        console.print(
            f"  {name:<14}{seen[name]['count']:>5} requests, {seen[name]['failed']} of them failed on purpose"
        )
    console.print("  and with the latest of them, which the app had sent without any key:")
    for header in INJECTED:
        console.print(f"    [green]{header}: {seen['payment']['headers'].get(header, '-')}[/]")

    console.print("\n[bold]What was retried[/]")
    for name, count in sorted(metrics["retries"].items()):
        console.print(f"  {name}: {count} retries; not retried: {metrics['suppressed'].get(name, 'nothing')}")
    console.print("[bold]What the breaker did[/]")
    for (name, old, new), count in metrics["transitions"].items():
        console.print(f"  {name}: {old} -> {new}, {count} times")

    console.print("\n[bold]Bookings made[/]")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "direct", "through outrider", "p99 direct", "p99 through"):
        table.add_column(title, justify="left" if not title else "right")
    for name, _ in PHASES:
        table.add_row(name, *_rates(lanes, name), *(f"{lanes[lane].p99(name) * 1000:,.0f} ms" for lane in lanes))
    table.add_row("[bold]altogether[/]", *(f"[bold]{text}[/]" for text in _rates(lanes)))
    console.print(table)

    console.print("\n[bold]Promises[/]")
    for promise, held in result["promises"].items():
        console.print(f"  {'[green]held  [/]' if held else '[red]BROKEN[/]'}  {promise}")


def _rates(lanes: dict[str, Lane], *phases: str) -> list[str]:
    return [f"{lanes[name].rate(*phases) * 100:.1f} %" for name in lanes]


async def _metrics(session: ClientSession, telemetry: str) -> dict[str, Any]:
    """Retries, suppressed retries and breaker transitions, from the sidecar's own /metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    async with session.get(f"{telemetry}/metrics") as answer:
        text = await answer.text()
    retries: Counter[str] = Counter()
    suppressed: dict[str, str] = {}
    transitions: Counter[tuple[str, str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, value = sample.labels, int(sample.value)
            if sample.name == "outrider_retries_total":
                retries[labels["service"]] += value
            elif sample.name == "outrider_retries_suppressed_total":
                told = f"{value} ({labels['reason']})"
                before = suppressed.get(labels["service"])
                suppressed[labels["service"]] = f"{before}, {told}" if before else told
            elif sample.name == "outrider_circuit_transitions_total":
                transitions[labels["service"], labels["from"], labels["to"]] += value
    return {"retries": retries, "suppressed": suppressed, "transitions": transitions}


@asynccontextmanager
async def _services(folder: Path) -> AsyncIterator[dict[str, str]]:
    """The booking system, running; its services' addresses."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(folder / "services.py"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        if not line:
            raise click.ClickException("the booking services did not start")
        yield json.loads(line)
    finally:
        await _end(process)


@asynccontextmanager
async def _outrider(folder: Path, urls: dict[str, str]) -> AsyncIterator[dict[str, str]]:
    """The sidecar, running; where it listens."""
    ports = dict(zip(("listen", "admin", "telemetry"), _free_ports(3), strict=True))
    environment = os.environ | {f"{name.upper()}_SERVICE_URL": urls[name] for name in DEPENDENCIES}
    environment |= {f"OUTRIDER_{name.upper()}": f"127.0.0.1:{port}" for name, port in ports.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "outrider",
        "run",
        "-c",
        str(folder / "outrider.yaml"),
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    addresses = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    try:
        await _wait_ready(process, addresses["telemetry"])
        yield addresses
    finally:
        await _end(process, signal.SIGINT)  # the app is still there: do not wait until it leaves


async def _wait_ready(process: asyncio.subprocess.Process, telemetry: str) -> None:
    async with ClientSession(timeout=ClientTimeout(total=1)) as session:
        for _ in range(200):
            if process.returncode is not None:
                raise click.ClickException(f"Outrider did not start (exit code {process.returncode})")
            try:
                async with session.get(f"{telemetry}/readyz") as answer:
                    if answer.status == 200:
                        return
            except (ClientError, TimeoutError):
                pass  # not up yet
            await asyncio.sleep(0.05)
    raise click.ClickException("Outrider was not ready within ten seconds")


async def _end(process: asyncio.subprocess.Process, how: signal.Signals = signal.SIGTERM) -> None:
    if process.returncode is None:
        process.send_signal(how)
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


async def _post(session: ClientSession, url: str, body: Any) -> None:
    async with session.post(url, json=body) as answer:
        answer.raise_for_status()


async def _get(session: ClientSession, url: str) -> Any:
    async with session.get(url) as answer:
        return await answer.json()
