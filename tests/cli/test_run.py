"""`outrider run`: what keeps it from starting is one clear line and the right exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FREE = ("--set", "listen=127.0.0.1:0", "--set", "admin.listen=127.0.0.1:0", "--set", "telemetry.listen=127.0.0.1:0")
MINIMAL = "service: booking\nservices:\n  user: http://127.0.0.1:1\n"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "outrider", "run", *arguments]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "OUTRIDER_CONFIG"}


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=10, check=False
    )


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another process listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.mark.parametrize("key", ["listen", "admin.listen", "telemetry.listen", "services.user.port"])
def test_port_in_use(tmp_path: Path, taken: int, key: str) -> None:
    """A port in use is one line with its key and address, and exit code 1."""
    (tmp_path / "outrider.yaml").write_text("service: booking\nservices:\n  user: {url: 'http://127.0.0.1:1'}\n")
    value = str(taken) if key.endswith("port") else f"127.0.0.1:{taken}"
    result = run(tmp_path, *FREE, "--set", f"{key}={value}")
    assert result.stderr == f"outrider: {key}: 127.0.0.1:{taken} is already in use by another process\n"
    assert result.returncode == 1


def test_address_of_another_machine(tmp_path: Path) -> None:
    """An address that is not ours is one line, and exit code 1."""
    result = run(tmp_path, "--service", "user=http://127.0.0.1:1", *FREE, "--set", "listen=192.0.2.1:0")
    assert result.stderr == "outrider: listen: 192.0.2.1:0 is not an address of this machine\n"
    assert result.returncode == 1


def test_bad_configuration(tmp_path: Path) -> None:
    """A configuration with errors never starts: its problems, their count, and exit code 78."""
    (tmp_path / "outrider.yaml").write_text(f"{MINIMAL}timout: 5s\n")
    result = run(tmp_path)
    lines = result.stderr.splitlines()
    assert lines[0].startswith('outrider.yaml:4:1  error  timout: unknown key "timout"')
    assert lines[-1] == "outrider: 1 error in the configuration"
    assert result.returncode == 78


def test_secret_that_cannot_be_read(tmp_path: Path) -> None:
    """A secret that cannot be read is named with its place in the file, and exit code 78."""
    text = f"{MINIMAL}credentials:\n  key:\n    header: x-api-key\n    value: ${{file:/no/such/key}}\n"
    (tmp_path / "outrider.yaml").write_text(text)
    result = run(tmp_path)
    first = result.stderr.splitlines()[0]
    assert first.startswith("outrider.yaml:7:12  error  credentials.key.value: the file /no/such/key cannot be read")
    assert result.stderr.splitlines()[-1] == "outrider: 1 error in the configuration"
    assert result.returncode == 78


def test_secret_that_cannot_be_used(tmp_path: Path) -> None:
    """A secret that cannot stand in a header is exit code 78, and is not shown."""
    (tmp_path / "key").write_text(" hunter2\n")
    text = f"{MINIMAL}credentials:\n  key:\n    header: x-api-key\n    value: ${{file:{tmp_path}/key}}\n"
    (tmp_path / "outrider.yaml").write_text(text)
    result = run(tmp_path, *FREE)
    assert "outrider.yaml:7:12  error  credentials.key.value" in result.stderr
    assert "hunter2" not in result.stderr + result.stdout
    assert result.returncode == 78


def test_wrapping_is_for_later(tmp_path: Path) -> None:
    """A command to wrap is refused as not supported yet, with exit code 2."""
    result = run(tmp_path, "--service", "user=http://127.0.0.1:1", "--", "npm", "start")
    assert result.stderr == "outrider: cannot run npm: wrapping a command is not supported yet\n"
    assert result.returncode == 2


def test_starts_and_stops(tmp_path: Path) -> None:
    """With a service on the command line alone it starts, says on which ports, and stops cleanly."""
    arguments = command("--service", "user=http://127.0.0.1:1", *FREE)
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            ready = json.loads(process.stderr.readline())
            assert ready["msg"] == "ready"
            assert ready["service"] == "app"
            with socket.create_connection(("127.0.0.1", ready["ports"]["listen"]), timeout=5):
                pass
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=5) == 0
        finally:
            process.kill()


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is one clear line, then the count, and exit code 78."""
    result = run(tmp_path, "-c", "missing.yaml")
    assert result.returncode == 78
    assert result.stderr.splitlines() == [
        "missing.yaml  error  cannot be read: No such file or directory",
        "outrider: 1 error in the configuration",
    ]


def test_a_start_imports_no_more_than_it_needs() -> None:
    """Libraries that only some configurations need, or that are needed only later, are not imported for all."""
    code = (
        "import sys, outrider.cli.run, outrider.app\n"
        "unwanted = {'redis', 'tornado', 'aiohttp', 'jwt', 'dns', 'prometheus_client', 'rich', 'multiprocessing'}\n"
        "print(sorted(unwanted & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[]\n"


def test_what_was_kept_from_pybreaker_can_be_imported_afterwards() -> None:
    """Redis is there for those who ask for it."""
    code = "import outrider.app, redis; print(redis.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "redis\n"
