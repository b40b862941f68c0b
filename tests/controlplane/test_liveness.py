"""Guards on one file tell each other's calls from those of dead ones."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.controlplane.idempotency.liveness import Liveness


def test_a_guard_runs_until_it_ends(tmp_path: Path) -> None:
    """Only between showing itself and its end."""
    one, other = Liveness(tmp_path / "k.db"), Liveness(tmp_path / "k.db")
    assert not other.runs(one.name)
    one.show()
    one.show()
    assert (one.runs(one.name), other.runs(one.name)) == (True, True)
    one.end()
    assert (one.runs(one.name), other.runs(one.name)) == (False, False)


def test_a_killed_guard_does_not_run(tmp_path: Path) -> None:
    """The kernel says so, however the process ended."""
    text = (
        "import sys, time; from pathlib import Path; from outrider.controlplane.idempotency.liveness import Liveness\n"
        "it = Liveness(Path(sys.argv[1])); it.show(); print(it.name, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", text, str(tmp_path / "k.db")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        name = process.stdout.readline().decode().strip()
        us = Liveness(tmp_path / "k.db")
        assert us.runs(name)
        process.send_signal(signal.SIGSTOP)  # it is slow, not dead
        assert us.runs(name)
        process.kill()
        process.wait(10)
        assert not us.runs(name)


def test_files_of_dead_guards_are_cleared_up(tmp_path: Path) -> None:
    """And no others."""
    guards = [Liveness(tmp_path / "k.db") for _ in range(3)]
    for guard in guards:
        guard.show()
    guards[0].end()
    (tmp_path / "k.db-wal").touch()
    guards[1].clear_up()
    assert {file.name for file in tmp_path.iterdir()} == {guards[1].file.name, guards[2].file.name, "k.db-wal"}
    guards[2].leave()
    assert not guards[2].file.exists()


def test_a_guard_whose_file_was_removed_shows_itself_again(tmp_path: Path) -> None:
    """When it is asked to."""
    one, other = Liveness(tmp_path / "k.db"), Liveness(tmp_path / "k.db")
    one.show()
    one.file.unlink()
    one.show()
    assert other.runs(one.name)


def test_what_cannot_be_told_is_not_taken_for_an_end(tmp_path: Path) -> None:
    """A file that is there and cannot be opened raises."""
    one, other = Liveness(tmp_path / "k.db"), Liveness(tmp_path / "k.db")
    one.file.symlink_to(one.file)
    with pytest.raises(OSError, match="symbolic links"):
        other.runs(one.name)
