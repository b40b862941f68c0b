"""`outrider health`: is the sidecar ready?"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from outrider.cli.health import main
from outrider.cli.options import asked
from tests.servers import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\ndraining\n"


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives one answer to one request; its address, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", asked
        thread.join(5)


@pytest.mark.parametrize("token", ["two\nlines-0123456789", "with blank-0123456789", "\u00e4\u00f6\u00fc-0123456789"])
def test_a_token_that_is_none_is_not_printed(
    token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would end the header or the request: the admin port is not asked, and nothing of the token is shown; readiness
    needs none, and is asked for without."""
    monkeypatch.setenv("OUTRIDER_ADMIN_TOKEN", token)
    with pytest.raises(SystemExit):
        asked("127.0.0.1:1", "/api/v1/keys")
    told = capsys.readouterr().err
    assert "OUTRIDER_ADMIN_TOKEN holds characters that no token has" in told
    assert "0123456789" not in told
    with answering(OK) as (address, requests):
        assert main(["--address", address]) == 0
    assert b"uthorization" not in requests[0]


def test_ready(capsys: pytest.CaptureFixture[str]) -> None:
    """A sidecar that answers 200 on /readyz is exit code 0, and what it says is shown."""
    with answering(OK) as (address, asked):
        assert main(["--address", address]) == 0
    assert asked[0].startswith(b"GET /readyz HTTP/1.1\r\n")
    assert capsys.readouterr().out == "ready\n"


def test_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    """Any other answer is exit code 1, and what it says is shown."""
    with answering(BUSY) as (address, _):
        assert main(["--address", address]) == 1
    assert capsys.readouterr().out == "draining\n"


def test_other_path() -> None:
    """Another path can be asked for."""
    with answering(OK) as (address, asked):
        assert main(["--address", address, "--path", "/healthz"]) == 0
    assert asked[0].startswith(b"GET /healthz ")


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_nonsense(answer: bytes) -> None:
    """Something that does not speak HTTP is not ready."""
    with answering(answer) as (address, _):
        assert main(["--address", address]) == 1


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """No answer is exit code 1 and one line that says whom we asked."""
    address = f"127.0.0.1:{free_port()}"
    assert main(["--address", address]) == 1
    assert capsys.readouterr().err == f"outrider: no answer from {address}: Connection refused\n"


@pytest.mark.parametrize("address", ["localhost", "4102", ":4102", "h:x"])
def test_wrong_usage(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that is none is exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["--address", address])
    assert caught.value.code == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_as_a_command() -> None:
    """The exit code reaches the shell, as a container's health check needs it."""
    with answering(OK) as (address, _):
        command = [sys.executable, "-m", "outrider", "health", "--address", address]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ready\n", "")


def test_starts_light() -> None:
    """Asking for health does not import the rest of Outrider, nor what that is built on."""
    code = (
        "import sys; sys.argv = ['outrider', 'health', '--address', '127.0.0.1:1']\n"
        "from outrider.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'click', 'asyncio', 'yaml', 'pydantic', 'aiohttp', 'uvloop'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=10, check=True)
    assert result.stdout == "[]\n"
