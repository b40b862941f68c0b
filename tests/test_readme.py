"""The README: every command and configuration it shows is executed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONFIGURATIONS = dict(re.findall(r"<!-- executed: (\S+) -->\n```yaml\n(.*?)```", README, re.S))
ENVIRONMENT = os.environ | {
    "SERVICE_API_KEY": "a-key-of-this-platform-0123456789",
    "BOOKING_KEY": "a-key-of-booking-service-0123456789",
}


def outrider(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outrider", *words]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_every_configuration_shown_is_sound(name: str, tmp_path: Path) -> None:
    """`outrider check` finds nothing to complain about in what the README shows."""
    (tmp_path / name).write_text(CONFIGURATIONS[name])
    checked = outrider("check", "--strict", "-c", name, folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_yaml_block_is_executed() -> None:
    """No configuration in the README escapes the test above."""
    assert README.count("```yaml") == len(CONFIGURATIONS) == 3


def test_the_first_call_is_answered(tmp_path: Path) -> None:
    """The commands of the first call, in their order, on free ports: curl gets 200 through the sidecar."""
    block = re.search(r"<!-- executed: first call -->\n```console\n(.*?)```", README, re.S)
    assert block is not None
    server, check, run, curl = (line.partition("#")[0].split() for line in block[1].splitlines())
    target, sidecar = free_port(), free_port()
    (tmp_path / "outrider.yaml").write_text(CONFIGURATIONS["outrider.yaml"].replace("3001", str(target)))
    ports = [f"--set={name}=127.0.0.1:{port}" for name, port in (("listen", sidecar), ("admin.listen", 0))]
    assert outrider(*check[1:], folder=tmp_path).returncode == 0
    command = [sys.executable, *server[1:]]
    command[command.index("3001")] = str(target)
    running = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)]
    try:
        sidecar_command = [sys.executable, "-m", *run, *ports, "--set=telemetry.listen=127.0.0.1:0"]
        running.append(subprocess.Popen(sidecar_command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL))
        wait_for(target)
        wait_for(sidecar)
        asked = [word.replace("4100", str(sidecar)) for word in curl]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10)
        assert answer.stdout.startswith("HTTP/1.1 200 "), answer.stdout
    finally:
        for process in running:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until somebody listens there."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"no process listens on port {port}")


def test_the_two_commands_are_verbs_of_the_makefile() -> None:
    """`make demo` and `make test` stand in the README, and make knows both, with every other verb it documents."""
    assert "make demo" in README
    assert "make test" in README
    for verb in ("demo", "test", "lint", "bench", "chaos", "soak", "docs"):
        found = subprocess.run(["make", "-n", verb], cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert found.returncode == 0, found.stderr


def test_the_demo_keeps_its_promises() -> None:
    """A short `outrider demo` ends with exit code 0: every promise held."""
    shown = outrider("demo", "--seconds", "5", "--rate", "30", folder=ROOT)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "BROKEN" not in shown.stdout


def test_links_lead_somewhere() -> None:
    """Every file that the README and the documents refer to exists."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
