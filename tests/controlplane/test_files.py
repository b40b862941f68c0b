"""Files are read beside the event loop, only regular ones, and nothing that is stuck holds anything up."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from outrider.config.files import UnusableFileError, read_regular
from outrider.controlplane import files
from outrider.controlplane.files import beside_the_loop, read_file


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, what waits for it is stuck, as on a file system that is away."""
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    event = threading.Event()
    yield event
    event.set()


def test_a_regular_file(tmp_path: Path) -> None:
    """Its content, up to the limit and no further."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)
    assert read_regular(str(path), 10) == b"x" * 10
    with pytest.raises(UnusableFileError, match="larger than 9 bytes"):
        read_regular(str(path), 9)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """Its size is looked at first: two sparse gigabytes cost nothing."""
    path = tmp_path / "f"
    with path.open("wb") as stream:
        stream.truncate(2 << 30)
    began = monotonic()
    with pytest.raises(UnusableFileError, match="larger"):
        read_regular(str(path), 1 << 20)
    assert monotonic() - began < 1


def test_a_size_that_is_not_true(tmp_path: Path) -> None:
    """Files in /proc say that they are empty."""
    with pytest.raises(UnusableFileError, match="larger than 3 bytes"):
        read_regular("/proc/self/status", 3)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe without a writer, a folder, a device, nothing, a name that is none: each is told, none waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "link", tmp_path / "missing", "nul\0"):
        with pytest.raises(UnusableFileError):
            read_regular(str(path), 100)


async def test_reading_in_the_thread(tmp_path: Path) -> None:
    """The content, or why there is none, as from `read_regular`."""
    (tmp_path / "f").write_bytes(b"content")
    assert await read_file(str(tmp_path / "f"), 100) == b"content"
    with pytest.raises(UnusableFileError, match="No such file"):
        await read_file(str(tmp_path / "g"), 100)
    with pytest.raises(ZeroDivisionError):
        await beside_the_loop("x", lambda: 1 // 0)  # type: ignore[arg-type, return-value] # any exception comes through


async def test_a_stuck_file_holds_nothing_up(hung: threading.Event, tmp_path: Path) -> None:
    """What waits behind it is read by another thread, and the loop goes on."""
    (tmp_path / "f").write_bytes(b"content")
    stuck = asyncio.create_task(beside_the_loop("stuck", hung.wait))
    await asyncio.sleep(0.05)
    behind = asyncio.create_task(read_file(str(tmp_path / "f"), 100))
    with pytest.raises(UnusableFileError, match="could not be read within"):
        await stuck
    assert await behind == b"content"
    assert await read_file(str(tmp_path / "f"), 100) == b"content"


async def test_a_stuck_file_takes_one_thread(hung: threading.Event) -> None:
    """However often it is looked at; and when it has come back, it is read again."""
    with pytest.raises(UnusableFileError):
        await beside_the_loop("again", hung.wait)
    before = threading.active_count()
    for _ in range(20):
        with pytest.raises(UnusableFileError, match="still not to be had"):
            await beside_the_loop("again", hung.wait)
    assert threading.active_count() == before
    hung.set()
    async with asyncio.timeout(2):
        while True:
            try:
                assert await beside_the_loop("again", lambda: "back") == "back"
                return
            except UnusableFileError:
                await asyncio.sleep(0.01)


async def test_no_thread_is_waited_for_at_the_end(hung: threading.Event) -> None:
    """All of them are daemons."""
    with pytest.raises(UnusableFileError):
        await beside_the_loop("at the end", hung.wait)
    assert all(one.daemon for one in threading.enumerate() if one.name == "files")
