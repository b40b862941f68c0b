"""The lanes: what stands between client and targets, configured as its makers advise.

All proxies get the same knowledge about the service: the client's patience is 3 s, a GET that takes more than 250 ms is
better asked elsewhere, a POST must not run twice. Retries are bounded by a budget of 20 %.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.setup import ROOT, WORK, envoy, measured_python

OUTRIDER = "outrider"
ENVOY = "envoy"
# Seconds; just under the client's patience, so that the client gets an answer that says what was wrong.
WHOLE_CALL, ONE_GET = 2.8, 0.25


@dataclass(frozen=True, slots=True)
class Lane:
    """One proxy under comparison: how to start it (nothing: no proxy), where it listens, and the path that names the
    service there."""

    name: str
    port: int
    path: str = ""
    command: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


# Settings of Outrider's route of GETs, unless others are given.
GETS = (
    f"{{ attempt_timeout: {ONE_GET * 1000:g}ms, circuit_breaker: {{ wait: 1s }}, "
    "max_in_flight: adaptive, queue: { size: 200, wait: 1s } }"
)
# Of the whole service: a call may wait for the circuit to close for a part of the client's patience.
SERVICE = "{ circuit_breaker: { wait: 1s } }"


def outrider(
    ports: Sequence[int], listen: Sequence[int], *, service: str = SERVICE, gets: str = GETS, compiled: bool = False
) -> Lane:
    """Outrider; `listen` are its three ports. `service` and `gets` are settings as YAML maps, for the service and for
    its route of GETs. `compiled`: as bench/setup.py has built it; otherwise this source tree."""
    urls = ", ".join(f"http://127.0.0.1:{port}" for port in ports)
    config = _write(
        f"{OUTRIDER}-{len(ports)}.yaml",
        f"""
service: booking-service
instance: booking-1
listen: 127.0.0.1:{listen[0]}
admin: {{ listen: "127.0.0.1:{listen[1]}" }}
telemetry: {{ listen: "127.0.0.1:{listen[2]}" }}
defaults: {service}
services:
  user:
    url: [{urls}]
    timeout: {WHOLE_CALL}s
    routes:
      - {_with("match: GET /**", gets)}
""",
    )
    python = measured_python() if compiled else sys.executable
    environment = {} if compiled else {"PYTHONPATH": str(ROOT / "src")}
    return Lane(OUTRIDER, listen[0], "/user", (python, "-m", "outrider", "run", "-c", str(config)), environment)


def envoy_lane(name: str, ports: Sequence[int], listen: int, *, panic: bool = True, hedge: bool = False) -> Lane:
    """Envoy: retries, outlier detection and breakers by its best practices.

    `panic`: with too many endpoints ejected, ask them all rather than none (Envoy's default, at half of them). Without,
    and with one endpoint, its ejection works as a circuit breaker. `hedge`: a GET's attempt that is overdue goes on
    while the next is made.
    """
    types = "type.googleapis.com/envoy.extensions.filters"
    hosts = "\n".join(
        f"        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}"
        for port in ports
    )
    previous = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    elsewhere = f"""
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config: {{ "@type": {previous} }}
                    host_selection_retry_max_attempts: 5
                    retry_back_off: {{ base_interval: 0.025s, max_interval: 0.25s }}"""
    hedging = "\n                  hedge_policy: { hedge_on_per_try_timeout: true }" if hedge else ""
    config = _write(
        f"{name}-{len(ports)}.yaml",
        f"""
static_resources:
  listeners:
  - name: app
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {listen} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {types}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: app
          route_config:
            name: routes
            virtual_hosts:
            - name: services
              domains: ["*"]
              routes:
              - match:
                  prefix: "/user/"
                  headers: [{{ name: ":method", string_match: {{ exact: POST }} }}]
                route:
                  cluster: user
                  prefix_rewrite: "/"
                  timeout: {WHOLE_CALL}s
                  retry_policy:
                    retry_on: connect-failure
                    num_retries: 3{elsewhere}
              - match: {{ prefix: "/user/" }}
                route:
                  cluster: user
                  prefix_rewrite: "/"
                  timeout: {WHOLE_CALL}s
                  retry_policy:
                    retry_on: "5xx,reset,connect-failure"
                    num_retries: 3
                    per_try_timeout: {ONE_GET}s{elsewhere}{hedging}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": {types}.http.router.v3.Router }}
  clusters:
  - name: user
    type: STATIC
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST
    common_lb_config: {{ healthy_panic_threshold: {{ value: {50 if panic else 0} }} }}
    outlier_detection:
      consecutive_5xx: 5
      interval: 0.5s
      base_ejection_time: 2s
      max_ejection_time: 2s
      max_ejection_percent: {67 if len(ports) > 1 else 100}
    circuit_breakers:
      thresholds:
      - max_connections: 1024
        max_pending_requests: 1024
        max_requests: 1024
        retry_budget: {{ budget_percent: {{ value: 20 }}, min_retry_concurrency: 5 }}
    load_assignment:
      cluster_name: user
      endpoints:
      - lb_endpoints:
{hosts}
""",
    )
    # Without hot restart, because several run on this machine.
    command = (envoy(), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error")
    return Lane(name, listen, "/user", command)


def direct(ports: Sequence[int]) -> Lane:
    """No proxy: the control, which shows what the faults alone do."""
    return Lane("no proxy", ports[0])


def _with(first: str, settings: str) -> str:
    """A YAML flow map that begins with `first`."""
    inside = settings.strip().removeprefix("{").removesuffix("}").strip()
    return f"{{ {first}, {inside} }}" if inside else f"{{ {first} }}"


def _write(name: str, text: str) -> Path:
    folder = WORK / "chaos"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name.replace(" ", "-")
    path.write_text(text.lstrip())
    return path
