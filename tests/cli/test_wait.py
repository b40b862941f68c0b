"""`outrider wait` and `outrider drain`: start after the sidecar, and stop it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from outrider.cli.verbs import cli
from outrider.cli.wait import main
from tests.cli.test_health import BUSY, OK, answering, free_port

ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 9\r\n\r\ndraining\n"
FORBIDDEN = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 13\r\n\r\nunauthorized\n"


def outrider(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outrider", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=folder)


def test_ready_is_0() -> None:
    """Without a command, a sidecar that is ready is all there is to wait for."""
    with answering(OK) as (address, _):
        assert main(["--address", address]) == 0


def test_not_in_time_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    """The last word of the sidecar, or why there was none, is said."""
    with answering(BUSY) as (address, _):
        assert main(["--address", address, "--timeout", "0s"]) == 1
    assert "draining" in capsys.readouterr().err
    assert main(["--address", f"127.0.0.1:{free_port()}", "--timeout", "0s"]) == 1
    assert "refused" in capsys.readouterr().err


def test_the_command_takes_our_place() -> None:
    """Its output, its arguments and its exit code are the command's."""
    with answering(OK) as (address, _):
        done = outrider("wait", "--address", address, "--", sys.executable, "-c", "print('hi'); raise SystemExit(7)")
    assert (done.stdout, done.returncode) == ("hi\n", 7)


def test_the_sidecar_is_stopped_after_the_command() -> None:
    """With --shutdown, in that order, and the exit code is still the command's."""
    with answering(OK) as (address, _), answering(ACCEPTED) as (admin, asked):
        words = ("wait", "--shutdown", "--address", address, "--admin", admin, "--")
        done = outrider(*words, sys.executable, "-c", "raise SystemExit(3)")
    assert done.returncode == 3
    assert asked[0].startswith(b"POST /-/quit HTTP/1.1\r\n")
    assert b"X-Outrider: 1\r\n" in asked[0]


def test_signals_reach_the_command(tmp_path: Path) -> None:
    """SIGTERM goes to the command, whose end counts; killed by it, the exit code is 143."""
    with answering(OK) as (address, _), answering(ACCEPTED) as (admin, _):
        command = [sys.executable, "-m", "outrider", "wait", "--shutdown", "--address", address, "--admin", admin, "--"]
        code = "import pathlib, time; pathlib.Path('up').touch(); time.sleep(30)"
        with subprocess.Popen([*command, sys.executable, "-c", code], cwd=tmp_path) as waiting:
            while not (tmp_path / "up").exists():
                assert waiting.poll() is None
            waiting.send_signal(signal.SIGTERM)
            assert waiting.wait(10) == 143


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("./not-executable", 126), ("/", 126)])
@pytest.mark.parametrize("shutdown", [False, True])
def test_a_command_that_cannot_be_run_is_said(tmp_path: Path, command: str, code: int, shutdown: bool) -> None:
    """One line, and the exit code that a shell has for it. With --shutdown the sidecar is stopped all the same: nothing
    else would stop it."""
    (tmp_path / "not-executable").write_text("")
    with answering(OK) as (address, _), answering(ACCEPTED) as (admin, asked):
        more = ("--shutdown", "--admin", admin) if shutdown else ()
        done = outrider("wait", "--address", address, *more, "--", command, folder=tmp_path)
        if not shutdown:
            outrider("drain", "--admin", admin)  # so that the server there ends
    assert done.returncode == code
    assert f"cannot run {command}" in done.stderr
    assert asked[0].startswith(b"POST /-/quit" if shutdown else b"POST /-/drain")


@pytest.mark.parametrize("words", [["--shutdown"], ["--timeout", "5"], ["--address", "nowhere"]])
def test_bad_usage_is_2(words: list[str]) -> None:
    """What cannot be meant is refused before anything is waited for."""
    done = outrider("wait", *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_drain_gives_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST to the admin port, with the token of the environment if there is one."""
    monkeypatch.setenv("OUTRIDER_ADMIN_TOKEN", "a-token-of-the-admin")
    with answering(ACCEPTED) as (admin, asked):
        done = CliRunner().invoke(cli, ["drain", "--admin", admin])
    assert (done.exit_code, done.output) == (0, "draining\n")
    assert b"Authorization: Bearer a-token-of-the-admin\r\n" in asked[0]


def test_drain_says_what_went_wrong() -> None:
    """Refused, or nobody there: exit code 1 and the reason."""
    with answering(FORBIDDEN) as (admin, _):
        done = CliRunner().invoke(cli, ["drain", "--admin", admin])
    assert done.exit_code == 1
    assert "unauthorized" in done.output
    done = CliRunner().invoke(cli, ["drain", "--admin", f"127.0.0.1:{free_port()}"])
    assert done.exit_code == 1
