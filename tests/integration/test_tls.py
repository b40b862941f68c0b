"""TLS to targets and on the inbound listener: verified, resumed, reloaded, and clear about what is wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from outrider.config.load import load
from outrider.errors import ConfigError
from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Answer,
    Client,
    Sidecar,
    Target,
    echo,
    eventually,
    exchange,
    get,
    in_steps,
    plain,
    raw,
    request,
    whole_config,
)

KEY = b"secret-of-the-platform"


class Authority:
    """A certificate authority with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.folder = folder
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.file)

    def server(self, *names: str, clients: trustme.CA | None = None, expired: bool = False) -> ssl.SSLContext:
        """The context of a server with a certificate for these names; `clients` must show certificates of that CA."""
        until = datetime.now(UTC) + timedelta(days=-1 if expired else 30)
        issued = self.ca.issue_cert(
            *(names or ("127.0.0.1", "localhost")), not_after=until, not_before=until - timedelta(days=60)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(context)
        if clients is not None:
            clients.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def files(self, stem: str, *names: str) -> tuple[Path, Path]:
        """Certificate and key of a new identity, as files."""
        issued = self.ca.issue_cert(*(names or ("booking.internal",)))
        cert, key = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        return cert, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def config(target: Target, tls: str = "", more: str = "") -> str:
    return (
        f"credentials: {{ key: {{ header: x-api-key, value: {KEY.decode()} }} }}\n"
        f"services:\n  user: {{ url: '{target.url}', auth: key, {f'tls: {{ {tls} }},' if tls else ''} {more} }}"
    )


def problem(answer: Answer) -> dict[str, str]:
    said: dict[str, str] = json.loads(answer.body)
    return said


def handshakes(proxy: Sidecar) -> dict[str, int]:
    return dict(proxy.app.runtime.compiled.clusters[0].stats.handshakes)


async def test_a_target_is_called_over_tls(outrider: Outrider, authority: Authority) -> None:
    """Verified against the authority that is named, with all that a call brings, over one kept-alive connection."""
    async with Target(echo, tls=authority.server()) as target:
        async with outrider(config(target, f"ca: {authority.file}")) as proxy, Client(proxy.port) as client:
            for body in (b"one", b"x" * 300_000):
                answer = await client.call(request("POST", "/user/42", body))
                assert (answer.status, answer.body) == (200, body)
            assert handshakes(proxy) == {"full": 1}
    assert target.connections == 1
    assert [seen.get("x-api-key") for seen in target.seen] == [KEY.decode()] * 2
    assert target.seen[0].get("host") == f"127.0.0.1:{target.port}"


async def test_the_name_in_the_certificate_can_be_said(outrider: Outrider, authority: Authority) -> None:
    """`server_name` is sent and verified instead of the host of the URL."""
    context = authority.server("payment-service")
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    async with Target(plain(), tls=context) as target:
        async with outrider(config(target, f"ca: {authority.file}, server_name: payment-service")) as proxy:
            assert (await exchange(proxy.port, get("/user/x"))).status == 200
    assert asked == ["payment-service"]


async def test_sessions_are_resumed(outrider: Outrider, authority: Authority) -> None:
    """The second connection to a target saves the handshake's certificates and signatures."""
    async with Target(plain(200, b"ok", "Connection: close"), tls=authority.server()) as target:
        target.script(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
        async with outrider(config(target, f"ca: {authority.file}", "idle_timeout: 20ms")) as proxy:
            for number in range(3):
                assert (await exchange(proxy.port, get("/user/x"))).status == 200
                await eventually(
                    lambda: not proxy.app.runtime.compiled.clusters[0].endpoints[0].pool.idle, "the idle one is gone"
                )
                assert sum(handshakes(proxy).values()) == number + 1
            assert handshakes(proxy) == {"full": 1, "resumed": 2}


UNTRUSTED = {
    "another authority": ("unknown", "not trusted as 127.0.0.1"),
    "another name": ("name", "mismatch"),
    "expired": ("expired", "expired"),
}


@pytest.mark.parametrize(("case", "said"), UNTRUSTED.values(), ids=UNTRUSTED)
async def test_a_bad_certificate_is_told_apart(
    outrider: Outrider, authority: Authority, tmp_path: Path, case: str, said: str
) -> None:
    """502 `tls-certificate` with the reason; nothing of the request is sent, least of all the credential."""
    other = tmp_path / "other"
    other.mkdir()
    signer = Authority(other) if case == "unknown" else authority
    names = ("elsewhere.internal",) if case == "name" else ()
    async with Target(plain(), tls=signer.server(*names, expired=case == "expired")) as target:
        async with outrider(config(target, f"ca: {authority.file}", "retry: false")) as proxy:
            answer = await exchange(proxy.port, request("POST", "/user/x", b"body"))
    assert answer.status == 502
    assert problem(answer)["error"] == "TLS_CERTIFICATE"
    assert said in problem(answer)["detail"].lower().replace("ip address ", "")
    assert "tls_certificate_error" in (answer.get("proxy-status") or "")
    assert not target.seen


async def test_the_systems_authorities_are_the_default(outrider: Outrider, authority: Authority) -> None:
    """Without `tls` the certificate is verified all the same, so one of our own authority is not trusted."""
    async with Target(plain(), tls=authority.server()) as target, outrider(config(target)) as proxy:
        assert problem(await exchange(proxy.port, get("/user/x")))["error"] == "TLS_CERTIFICATE"
    assert not target.seen


async def test_a_target_without_tls_is_told_apart(outrider: Outrider, authority: Authority) -> None:
    """https:// to a plain HTTP server is not a bad certificate and not a refused connection."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        tls = f"tls: {{ ca: {authority.file} }}, retry: false"
        async with outrider(f"services: {{ user: {{ url: 'https://127.0.0.1:{port}', {tls} }} }}") as proxy:
            answer = await exchange(proxy.port, get("/user/x"))
    assert problem(answer)["error"] == "TLS_FAILED"
    assert "http://" in problem(answer)["detail"]


async def test_a_refused_connection_is_not_a_tls_fault(outrider: Outrider, authority: Authority) -> None:
    """Nobody listening is `connect-failed`, as without TLS."""
    async with Target(plain(), tls=authority.server()) as target:
        pass
    async with outrider(config(target, f"ca: {authority.file}", "retry: false")) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
    assert problem(answer)["error"] == "CONNECT_FAILED"


@contextmanager
def blocking_server(context: ssl.SSLContext) -> Iterator[tuple[int, list[bytes]]]:
    """A server that lets OpenSSL write its alerts to the socket, which event loops do not: `(port, what it read)`."""
    listening = socket.create_server(("127.0.0.1", 0))
    read: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as secured:
                    read.append(secured.recv(65536))
                    secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    secured.recv(1)
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1], read
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["none", "of a stranger", "ours"])
async def test_a_target_may_ask_for_our_certificate(
    outrider: Outrider, authority: Authority, tmp_path: Path, version: ssl.TLSVersion, shown: str
) -> None:
    """With `cert` and `key` we are let in; otherwise the answer says that our certificate is why, and that nothing was
    sent, even to a POST."""
    context = authority.server(clients=authority.ca)
    context.maximum_version = version
    (tmp_path / "stranger").mkdir()
    cert, key = (authority if shown == "ours" else Authority(tmp_path / "stranger")).files("booking")
    show = "" if shown == "none" else f", cert: {cert}, key: {key}"
    with blocking_server(context) as (port, read):
        tls = f"tls: {{ ca: {authority.file}{show} }}, retry: false"
        async with outrider(f"services: {{ user: {{ url: 'https://127.0.0.1:{port}', {tls} }} }}") as proxy:
            answer = await exchange(proxy.port, request("POST", "/user/x", b"body"))
        if shown == "ours":
            assert (answer.status, len(read)) == (200, 1)
        else:
            assert problem(answer)["error"] == "TLS_REFUSED"
            assert "tls.cert" in problem(answer)["detail"]
            assert not read


async def test_new_files_are_used_without_a_failed_call(
    outrider: Outrider, authority: Authority, tmp_path: Path
) -> None:
    """A certificate, its key and the authority are replaced under load: every call is answered, and in the end the
    new authority is trusted and the old one is not."""
    fresh_folder = tmp_path / "fresh"
    fresh_folder.mkdir()
    fresh = Authority(fresh_folder)
    cert, key = authority.files("booking")
    context = authority.server(clients=authority.ca)
    fresh.ca.configure_trust(context)  # the target accepts both while we rotate
    async with Target(plain(), tls=context) as target:
        async with outrider(config(target, f"ca: {authority.file}, cert: {cert}, key: {key}")) as proxy:
            watched = proxy.app.runtime.compiled.certificates
            statuses: list[int] = []
            stop = asyncio.Event()

            async def load_() -> None:
                while not stop.is_set():
                    statuses.append((await exchange(proxy.port, get("/user/x"))).status)

            callers = [asyncio.create_task(load_()) for _ in range(4)]
            await asyncio.sleep(0.05)
            new_cert, new_key = fresh.files("booking")
            cert.write_bytes(new_cert.read_bytes())
            for one in watched._watched:
                await watched.refresh(one)  # half-written: the key does not fit yet, so nothing changes
            key.write_bytes(new_key.read_bytes())
            both = authority.ca.cert_pem.bytes() + fresh.ca.cert_pem.bytes()
            authority.file.write_bytes(both)
            for one in watched._watched:
                await watched.refresh(one)
            await asyncio.sleep(0.1)
            stop.set()
            await asyncio.gather(*callers)
            assert set(statuses) == {200}
            assert handshakes(proxy)["full"] >= 2, "connections made with the old files are not used again"


async def test_expiry_is_a_metric(outrider: Outrider, authority: Authority) -> None:
    """For our own certificate, the authority's, and what the target has shown."""
    cert, key = authority.files("booking")
    async with Target(plain(), tls=authority.server()) as target:
        async with outrider(config(target, f"ca: {authority.file}, cert: {cert}, key: {key}")) as proxy:
            await exchange(proxy.port, get("/user/x"))
            page = await exchange(proxy.telemetry, get("/metrics", host="127.0.0.1"))
    lines = [line for line in page.body.decode().splitlines() if line.startswith("outrider_certificate_expiry")]
    assert {line.split('certificate="')[1].split('"')[0] for line in lines} == {"ca", "cert", "target"}
    target_line = next(line for line in lines if 'certificate="target"' in line)
    assert abs(float(target_line.split()[-1]) - (datetime.now(UTC) + timedelta(days=30)).timestamp()) < 3600


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_broken_off_answer_is_visible_over_tls(outrider: Outrider, authority: Authority, then: str) -> None:
    """Half a body, and then the connection ends: the app's connection is broken, too."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000
    async with Target(in_steps(half, pause=0.05, then=then), tls=authority.server()) as target:
        async with outrider(config(target, f"ca: {authority.file}")) as proxy, Client(proxy.port) as client:
            await client.send(get("/user/x"))
            answer = await client.head()
            with pytest.raises(Exception, match=r"reset|eof"):
                async for _ in client.body(answer):
                    pass


async def test_large_bodies_flow_over_tls(outrider: Outrider, authority: Authority) -> None:
    """4 MiB up and down, whole."""
    body = bytes(range(256)) * (4 << 12)
    async with Target(echo, tls=authority.server()) as target:
        async with outrider(config(target, f"ca: {authority.file}")) as proxy:
            answer = await exchange(proxy.port, request("POST", "/user/x", body))
    assert answer.body == body


# ---------------------------------------------------------------- the inbound listener


def inbound(target: Target, tls: str) -> str:
    return (
        f"inbound: {{ listen: 127.0.0.1:0, app: '{target.url}', protect: [], tls: {{ {tls} }} }}\n"
        "services: { other: 'http://127.0.0.1:9' }"
    )


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.file))


async def test_inbound_calls_come_in_over_tls(outrider: Outrider, authority: Authority) -> None:
    """Keep-alive, bodies and pipelining work as without; the app gets plain HTTP."""
    cert, key = authority.files("guard", "localhost")
    async with Target(echo) as app, outrider(inbound(app, f"cert: {cert}, key: {key}")) as proxy:
        port = proxy.app.ports["inbound.listen"]
        async with Client(port, tls=trusting(authority)) as client:
            for body in (b"one", b"x" * 200_000):
                assert (await client.call(request("POST", "/bookings", body))).body == body
            await client.send(request("POST", "/a", b"1") + request("POST", "/b", b"2"))
            assert [(await client.answer()).body for _ in range(2)] == [b"1", b"2"]
    assert [seen.path for seen in app.seen] == ["/bookings", "/bookings", "/a", "/b"]


async def test_an_answer_that_ends_the_connection_arrives_whole_over_tls(
    outrider: Outrider, authority: Authority
) -> None:
    """TLS has no half-close: the answer is sent, then the connection ends."""
    cert, key = authority.files("guard", "localhost")
    big = b"x" * 500_000
    async with Target(plain(200, big)) as app, outrider(inbound(app, f"cert: {cert}, key: {key}")) as proxy:
        async with Client(proxy.app.ports["inbound.listen"], tls=trusting(authority)) as client:
            answer = await client.call(get("/x", "Connection: close"))
            assert answer.body == big
            assert await client.end() == "eof"


async def test_callers_may_have_to_show_a_certificate(outrider: Outrider, authority: Authority) -> None:
    """With `client_ca`, only callers with a certificate of that authority get to the app."""
    cert, key = authority.files("guard", "localhost")
    text = f"cert: {cert}, key: {key}, client_ca: {authority.file}"
    async with Target(plain()) as app, outrider(inbound(app, text)) as proxy:
        port = proxy.app.ports["inbound.listen"]
        with pytest.raises((ConnectionError, ssl.SSLError, Exception)):
            async with Client(port, tls=trusting(authority)) as client:
                await client.call(get("/x"))
        assert not app.seen
        known = trusting(authority)
        authority.ca.issue_cert("caller.internal").configure_cert(known)
        async with Client(port, tls=known) as client:
            assert (await client.call(get("/x"))).status == 200


async def test_plain_http_to_a_tls_port_harms_nobody(outrider: Outrider, authority: Authority) -> None:
    """Garbage instead of a handshake ends that connection, and the next caller is served."""
    cert, key = authority.files("guard", "localhost")
    async with Target(plain()) as app, outrider(inbound(app, f"cert: {cert}, key: {key}")) as proxy:
        port = proxy.app.ports["inbound.listen"]
        async with Client(port) as client:
            await client.send(get("/x"))
            assert b"HTTP/1.1" not in await client.reader.read(1000)
        async with Client(port, tls=trusting(authority)) as client:
            assert (await client.call(get("/x"))).status == 200
        await eventually(
            lambda: proxy.app.runtime.proxy.stats.handshakes_failed["refused"] == 1, "the failed handshake counts"
        )


# ---------------------------------------------------------------- files that cannot be used

BAD_FILES = {
    "ca missing": ("ca: {folder}/nothing.pem", "tls.ca", "cannot be read"),
    "ca is no certificate": ("ca: {folder}/text.pem", "tls.ca", "holds no certificates"),
    "key without certificate": ("key: {folder}/booking.key", "tls.key", "no certificate"),
    "key of another": ("cert: {folder}/booking.crt, key: {folder}/other.key", "tls.key", "not the key of"),
    "no key": ("cert: {folder}/booking.crt", "tls.cert", "holds no private key"),
    "certificate is none": ("cert: {folder}/text.pem, key: {folder}/booking.key", "tls.cert", "holds no certificate"),
}


@pytest.mark.parametrize(("tls", "place", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_cannot_be_used_are_named(
    authority: Authority, tmp_path: Path, tls: str, place: str, said: str
) -> None:
    """`outrider check` and start-up name the key, the file and what is wrong with it."""
    authority.files("booking")
    authority.files("other")
    (tmp_path / "text.pem").write_text("no certificate")
    file = tmp_path / "outrider.yaml"
    text = tls.format(folder=tmp_path)
    file.write_text(whole_config(f"services: {{ user: {{ url: 'https://127.0.0.1:1', tls: {{ {text} }} }} }}"))
    with pytest.raises(ConfigError) as raised:
        load([str(file)], environment={})
    (problem,) = raised.value.problems
    assert place in problem.render()
    assert said in problem.render()
