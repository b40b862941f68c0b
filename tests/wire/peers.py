"""The proxies that the same table is put to, each set up as a careful operator would: keep-alive towards the target,
the credential set and not added, repeats only of what is idempotent, WebSocket and no other upgrade, no TRACE.

Everything a peer writes goes into a folder of its own, and every peer is there twice: with usual time limits, and with
short ones for the cases about time.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep

from tests.wire.model import CREDENTIAL, SECRET

_ROOT = Path(__file__).resolve().parents[2]
_KEY = SECRET.decode()
_START_WITHIN = 20.0


@dataclass(frozen=True)
class Setup:
    """What a configuration needs to know."""

    folder: Path
    port: int
    target: int
    short: bool

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file."""
        path = self.folder / name
        path.write_text(text.lstrip())
        return path


@dataclass(frozen=True)
class Peer:
    """A proxy, and how to start it; `program` is None where it is not installed."""

    name: str
    program: str | None
    command: Callable[[str, Setup], list[str]]


def peers() -> list[Peer]:
    """All of them, installed or not."""
    return [
        Peer("Outrider", sys.executable, _outrider),
        Peer("Envoy", _envoy_program(), _envoy),
        Peer("HAProxy", _find("haproxy"), _haproxy),
        Peer("nginx", _find("nginx"), _nginx),
    ]


@contextmanager
def running(peer: Peer, folder: Path, target: int, *, short: bool = False) -> Iterator[int]:
    """Run a peer in front of the target; the port it listens on."""
    assert peer.program is not None
    place = folder / f"{peer.name}-{'short' if short else 'usual'}"
    place.mkdir(parents=True)
    port = free_port()
    command = peer.command(peer.program, Setup(place, port, target, short))
    environment = os.environ | {"PYTHONPATH": os.environ.get("OUTRIDER_COMPILED") or str(_ROOT / "src")}
    with (place / "output").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=place, env=environment)
    try:
        _wait_for(port, process, place / "output")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def _wait_for(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    until = monotonic() + _START_WITHIN
    while monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} did not start:\n{output.read_text()[-2000:]}")


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _envoy_program() -> str | None:
    if program := _find("envoy"):
        return program
    spec = find_spec("envoy")  # the binary in its Python package
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in Path(folder).rglob("envoy"):
            if path.is_file() and path.stat().st_size > 1 << 20:
                return str(path)
    return None


def _outrider(program: str, setup: Setup) -> list[str]:
    limits = "limits: { header_timeout: 300ms, body_idle_timeout: 300ms }" if setup.short else ""
    timeout = "timeout: 1s, attempt_timeout: 300ms, retry: false, " if setup.short else ""
    config = setup.write(
        "outrider.yaml",
        f"""
service: booking
listen: 127.0.0.1:{setup.port}
admin: {{ listen: 127.0.0.1:{free_port()} }}
telemetry: {{ listen: 127.0.0.1:{free_port()} }}
credentials:
  key: {{ header: {CREDENTIAL}, value: {_KEY} }}
services:
  user: {{ url: "http://127.0.0.1:{setup.target}", auth: key, {timeout}circuit_breaker: false }}
{limits}
""",
    )
    return [program, "-m", "outrider", "run", "-c", str(config)]


def _nginx(program: str, setup: Setup) -> list[str]:
    patience = "300ms" if setup.short else "10s"
    paths = "".join(
        f"  {what}_temp_path {setup.folder}/{what};\n" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = setup.write(
        "nginx.conf",
        f"""
{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1; daemon off; pid {setup.folder}/pid; error_log {setup.folder}/errors crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
{paths}
  client_header_timeout {patience}; client_body_timeout {patience};
  client_max_body_size 10m;
  map $http_upgrade $upgrade {{ default ""; ~*^websocket$ websocket; }}
  map $upgrade $connection_upgrade {{ default ""; websocket upgrade; }}
  # Twice, because nginx repeats a call only on another server.
  upstream user {{
    server 127.0.0.1:{setup.target} max_fails=0;
    server 127.0.0.1:{setup.target} max_fails=0;
    keepalive 32;
  }}
  server {{
    listen 127.0.0.1:{setup.port};
    location / {{ return 404; }}
    location /user/ {{
      proxy_pass http://user/;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header HTTP2-Settings "";
      proxy_set_header {CREDENTIAL} {_KEY};
      proxy_connect_timeout 1s; proxy_read_timeout {patience}; proxy_send_timeout {patience};
      proxy_next_upstream error timeout; proxy_next_upstream_tries 3;
    }}
  }}
}}
""",
    )
    return [program, "-c", str(config), "-e", str(setup.folder / "errors")]


def _haproxy(program: str, setup: Setup) -> list[str]:
    patience = "300ms" if setup.short else "10s"
    config = setup.write(
        "haproxy.cfg",
        f"""
global
  nbthread 1
  maxconn 1024
defaults
  mode http
  timeout client {patience}
  timeout http-request {patience}
  timeout http-keep-alive 10s
  timeout connect 1s
  timeout server {patience}
  timeout tunnel 10s
  retries 3
  retry-on conn-failure empty-response
frontend app
  bind 127.0.0.1:{setup.port} proto h1
  acl websocket req.hdr(upgrade) -m str -i websocket
  http-request deny deny_status 405 if METH_TRACE or METH_CONNECT
  http-request deny deny_status 404 unless {{ path_beg /user/ }}
  http-request set-header upgrade websocket if websocket
  http-request del-header upgrade unless websocket
  http-request del-header http2-settings
  http-request disable-l7-retry unless METH_GET
  http-request set-header {CREDENTIAL} {_KEY}
  http-request replace-path /user/(.*) /\\1
  default_backend user
backend user
  http-reuse safe
  server user 127.0.0.1:{setup.target} maxconn 512
""",
    )
    return [program, "-db", "-f", str(config)]


def _envoy(program: str, setup: Setup) -> list[str]:
    idle, whole, attempt = ("0.3s", "1s", "0.3s") if setup.short else ("10s", "10s", "5s")
    types = "type.googleapis.com/envoy.extensions.filters"
    key = f"{{ header: {{ key: {CREDENTIAL}, value: {_KEY} }}, append_action: OVERWRITE_IF_EXISTS_OR_ADD }}"
    idempotent = '[{ name: ":method", string_match: { safe_regex: { regex: "GET|HEAD|OPTIONS|PUT|DELETE" } } }]'
    trace = '[{ name: ":method", string_match: { exact: TRACE } }]'
    config = setup.write(
        "envoy.yaml",
        f"""
static_resources:
  listeners:
  - name: app
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {setup.port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {types}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: app
          codec_type: HTTP1
          stream_idle_timeout: {idle}
          request_headers_timeout: {idle}
          delayed_close_timeout: 0.1s
          http_protocol_options: {{ accept_http_10: true }}
          common_http_protocol_options: {{ headers_with_underscores_action: REJECT_REQUEST, max_headers_count: 100 }}
          upgrade_configs: [{{ upgrade_type: websocket }}]
          route_config:
            name: routes
            request_headers_to_add: [{key}]
            virtual_hosts:
            - name: services
              domains: ["*"]
              routes:
              - match: {{ prefix: "/", headers: {trace} }}
                direct_response: {{ status: 405 }}
              - match: {{ prefix: "/user/", headers: {idempotent} }}
                route:
                  cluster: user
                  prefix_rewrite: "/"
                  timeout: {whole}
                  retry_policy: {{ retry_on: "reset,connect-failure", num_retries: 3, per_try_timeout: {attempt} }}
              - match: {{ prefix: "/user/" }}
                route:
                  cluster: user
                  prefix_rewrite: "/"
                  timeout: {whole}
                  retry_policy: {{ retry_on: connect-failure, num_retries: 3 }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": {types}.http.router.v3.Router }}
  clusters:
  - name: user
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: user
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {setup.target} }} }} }}
""",
    )
    return [program, "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "off"]
