"""Small files written by others: regular ones only, bounded, and never read on the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from time import monotonic

import pytest

from outrider import files
from outrider.files import FileError, read_apart, read_small_file


def test_it_gives_the_contents(tmp_path: Path) -> None:
    """Up to the limit a file is read whole, also through a link, as orchestrators mount secrets."""
    file = tmp_path / "secret"
    file.write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(file)
    assert read_small_file(file, 100) == read_small_file(str(tmp_path / "link"), 100) == b"x" * 100


def test_too_large(tmp_path: Path) -> None:
    """A larger file is refused by its size, a sparse one without being read; one without a size is read no further."""
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    for path in (file, "/proc/self/maps"):
        with pytest.raises(FileError, match="is larger than 99 bytes"):
            read_small_file(path, 99)


def test_not_a_regular_file(tmp_path: Path) -> None:
    """A FIFO, a device, a folder or a socket is refused at once, and the writer of a FIFO notices nothing."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path, tmp_path / "socket"):
            with pytest.raises(FileError, match=f"{path} is not a regular file"):
                read_small_file(path, 100)


def test_why_it_cannot_be_read(tmp_path: Path) -> None:
    """The message says why; that there is none can also be asked for."""
    with pytest.raises(FileError, match="cannot be read: No such file") as refused:
        read_small_file(tmp_path / "none", 100)
    assert refused.value.missing
    with pytest.raises(FileError, match="zero byte"):
        read_small_file("a\0b", 100)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(FileError, match="cannot be read: Too many levels") as refused:
        read_small_file(loop, 100)
    assert not refused.value.missing


async def test_a_hung_mount_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that hangs is given up in time, holds one thread however often it is tried, and no other file."""
    good, hung = tmp_path / "good", tmp_path / "hung"
    good.write_bytes(b"good")
    release = threading.Event()

    def read(path: Path, limit: int) -> bytes:
        if path == hung:
            release.wait(20)
        return read_small_file(path, limit)

    monkeypatch.setattr(files, "read_small_file", read)
    before = threading.active_count()
    started = monotonic()
    try:
        for _ in range(5):
            with pytest.raises(FileError, match="could not be read within"):
                await read_apart(hung, 100, 0.02)
            assert await read_apart(good, 100) == b"good"
        assert threading.active_count() <= before + 2  # one may be just ending
        assert monotonic() - started < 2
    finally:
        release.set()
    await asyncio.sleep(0)
    with pytest.raises(FileError, match="No such file"):
        await read_apart(hung, 100)
