"""The proxies under comparison, with equal features in front of one nginx target.

Equal means: three headers and a credential set, a correlation id made where none came, retries on 5xx and
connection faults with a budget, a call and an attempt timeout, a circuit breaker or what the peer has for one, a
rate limit and a concurrency limit that are checked on every call but never reached, keep-alive pools, one worker.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from setup import ROOT, WORK, envoy, find, measured_python

TARGET_PORT = 19001
PORTS = {"outrider": 19100, "outrider (not compiled)": 19110, "envoy": 19120, "haproxy": 19130, "nginx": 19140}
SMALL = '{"id":42,"name":"Ada Lovelace","email":"ada@example.com","role":"admin","active":true,"x":1}'
KEY = "k" * 32


@dataclass
class Peer:
    """One proxy: how to start it and where it listens. `path` is the prefix that names the service."""

    name: str
    command: list[str]
    port: int
    path: str = "/user"
    environment: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # of every request
    workers_below: bool = False  # the process that works is a child of the one that is started


def target_config() -> Path:
    """nginx as the target: a small JSON answer and a file of 1 MiB."""
    (WORK / "www").mkdir(parents=True, exist_ok=True)
    (WORK / "www" / "big").write_bytes(os.urandom(1024 * 1024))
    return _write(
        "target.conf",
        f"""
worker_processes 1; daemon off; pid {WORK}/target.pid; error_log {WORK}/target.err;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 65; sendfile on;
  server {{
    listen 127.0.0.1:{TARGET_PORT} backlog=4096;
    default_type application/json;
    location / {{ return 200 '{SMALL}'; }}
    location /big {{ root {WORK}/www; }}
  }}
}}
""",
    )


def peers() -> list[Peer]:
    """All proxies, ready to be started."""
    return [
        _outrider("outrider", {}),
        _outrider("outrider (not compiled)", {"PYTHONPATH": str(ROOT / "src")}),
        _envoy(),
        _haproxy(),
        _nginx(),
    ]


def _outrider(name: str, environment: dict[str, str]) -> Peer:
    port = PORTS[name]
    config = _write(
        f"{port}.yaml",
        f"""
service: booking-service
instance: booking-1
listen: 127.0.0.1:{port}
admin: {{ listen: 127.0.0.1:{port + 1} }}
telemetry: {{ listen: 127.0.0.1:{port + 2} }}
credentials:
  key: {{ header: x-api-key, value: {KEY} }}
services:
  user:
    url: http://127.0.0.1:{TARGET_PORT}
    auth: key
    rate_limit: 1000000/s
    max_in_flight: 1024
""",
    )
    return Peer(name, [measured_python(), "-m", "outrider", "run", "-c", str(config)], port, environment=environment)


def _envoy() -> Peer:
    port = PORTS["envoy"]
    types = "type.googleapis.com/envoy.extensions.filters"
    limit = f'"@type": {types}.http.local_ratelimit.v3.LocalRateLimit'
    add = "append_action: OVERWRITE_IF_EXISTS_OR_ADD"
    always = "{ default_value: { numerator: 100, denominator: HUNDRED } }"
    config = _write(
        "envoy.yaml",
        f"""
static_resources:
  listeners:
  - name: app
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {types}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: app
          generate_request_id: true
          route_config:
            name: routes
            virtual_hosts:
            - name: services
              domains: ["*"]
              routes:
              - match: {{ prefix: "/user/" }}
                route:
                  cluster: user
                  prefix_rewrite: "/"
                  timeout: 10s
                  retry_policy: {{ retry_on: "5xx,reset,connect-failure", num_retries: 3, per_try_timeout: 5s }}
                request_headers_to_add:
                - {{ header: {{ key: x-api-key, value: {KEY} }}, {add} }}
                - {{ header: {{ key: x-service-name, value: booking-service }}, {add} }}
                - {{ header: {{ key: x-service-id, value: booking-1 }}, {add} }}
                - {{ header: {{ key: x-correlation-id, value: "%REQ(x-request-id)%" }}, append_action: ADD_IF_ABSENT }}
                typed_per_filter_config:
                  envoy.filters.http.local_ratelimit:
                    {limit}
                    stat_prefix: limit
                    token_bucket: {{ max_tokens: 1000000, tokens_per_fill: 1000000, fill_interval: 1s }}
                    filter_enabled: {always}
                    filter_enforced: {always}
          http_filters:
          - name: envoy.filters.http.local_ratelimit
            typed_config: {{ {limit}, stat_prefix: limit }}
          - name: envoy.filters.http.router
            typed_config: {{ "@type": {types}.http.router.v3.Router }}
  clusters:
  - name: user
    type: STATIC
    connect_timeout: 1s
    outlier_detection: {{ consecutive_5xx: 5 }}
    circuit_breakers:
      thresholds:
      - max_connections: 1024
        max_pending_requests: 1024
        max_requests: 1024
        retry_budget: {{ budget_percent: {{ value: 20 }}, min_retry_concurrency: 3 }}
    load_assignment:
      cluster_name: user
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {TARGET_PORT} }} }} }}
""",
    )
    return Peer("envoy", [envoy(), "-c", str(config), "--concurrency", "1", "-l", "error"], port)


def _haproxy() -> Peer:
    port = PORTS["haproxy"]
    config = _write(
        "haproxy.cfg",
        f"""
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout client 30s
  timeout connect 1s
  timeout server 5s
  retries 3
  retry-on conn-failure empty-response response-timeout 500 502 503 504
  option redispatch
  unique-id-format %{{+X}}o%ci%cp%Ts%rt
frontend app
  bind 127.0.0.1:{port}
  stick-table type ip size 1k expire 1m store http_req_rate(1s)
  http-request track-sc0 src
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 1000000 }}
  http-request set-header x-api-key {KEY}
  http-request set-header x-service-name booking-service
  http-request set-header x-service-id booking-1
  http-request set-header x-correlation-id %[unique-id] unless {{ req.hdr(x-correlation-id) -m found }}
  http-request replace-path /user/(.*) /\\1
  default_backend user
backend user
  http-reuse always
  server user 127.0.0.1:{TARGET_PORT} maxconn 1024 observe layer7 error-limit 5 on-error mark-down check inter 5s
""",
    )
    return Peer("haproxy", [find("haproxy") or "haproxy", "-db", "-f", str(config)], port)


def _nginx() -> Peer:
    port = PORTS["nginx"]
    config = _write(
        "nginx.conf",
        f"""
worker_processes 1; daemon off; pid {WORK}/nginx.pid; error_log {WORK}/nginx.err;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000;
  limit_req_zone $server_name zone=rate:1m rate=1000000r/s;
  limit_conn_zone $server_name zone=conn:1m;
  map $http_x_correlation_id $correlation {{ default $http_x_correlation_id; "" $request_id; }}
  upstream user {{
    server 127.0.0.1:{TARGET_PORT} max_fails=5 fail_timeout=5s;
    keepalive 256; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /user/ {{
      limit_req zone=rate burst=1000 nodelay;
      limit_conn conn 1024;
      proxy_pass http://user/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header x-api-key {KEY};
      proxy_set_header x-service-name booking-service;
      proxy_set_header x-service-id booking-1;
      proxy_set_header x-correlation-id $correlation;
      proxy_connect_timeout 1s; proxy_read_timeout 5s;
      proxy_next_upstream error timeout http_500 http_502 http_503 http_504; proxy_next_upstream_tries 4;
    }}
  }}
}}
""",
    )
    return Peer("nginx", [find("nginx") or "nginx", "-c", str(config)], port, workers_below=True)


def _write(name: str, text: str) -> Path:
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / name
    path.write_text(text.lstrip())
    return path
