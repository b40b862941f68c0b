"""Lists of endpoints in files: what another program writes there, right, wrong, or not yet whole."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

from outrider import files
from outrider.controlplane import endpoint_list
from outrider.controlplane.dns import SourceError
from outrider.controlplane.endpoint_list import EndpointList, parse


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users.yaml"


def hosts(data: bytes) -> list[str]:
    return [entry.host for entry in parse(data)]


def bomb(levels: int) -> bytes:
    """A list of aliases of lists of aliases: nine to the power of `levels` entries."""
    lines = ["- &a0 [http://a:1]"]
    lines += [f"- &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join(lines).encode()


async def ticks(stop: asyncio.Event) -> float:
    """The longest time in which the event loop did nothing else, in seconds."""
    longest, before = 0.0, monotonic()
    while not stop.is_set():
        await asyncio.sleep(0.005)
        longest, before = max(longest, monotonic() - before), monotonic()
    return longest


async def undisturbed(work: Callable[[], object]) -> object:
    """Await what `work` starts, and insist that the event loop went on meanwhile."""
    stop = asyncio.Event()
    ticking = asyncio.create_task(ticks(stop))
    await asyncio.sleep(0)
    try:
        return await work()  # type: ignore[misc] # every caller gives something to await
    finally:
        stop.set()
        assert await ticking < 0.5


def test_what_a_list_may_hold() -> None:
    """URLs, or maps with url and weight, as YAML or as JSON."""
    assert hosts(b"- http://a:1\n- {url: 'https://b', weight: 2.5}\n") == ["a", "b"]
    (entry,) = parse(b'[{"url": "http://a:1/base", "weight": 3}]')
    assert (entry.url, entry.port, entry.netloc, entry.weight) == ("http://a:1/base", 1, "a:1", 3.0)
    assert hosts(b"") == hosts(b"[]") == hosts(b"# nothing yet\n") == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bomb(8), "anchors or aliases"),
        (b"- &a http://a:1\n", "anchors or aliases"),
        (b"[" * 1000, "nested too deeply"),
        (b"- http://a:1\n" * 20_000, "far too many entries"),
        (b"- " + b"1" * 200_000, "cannot be used"),
        (b"- " + b"1:" * 100_000 + b"1", "cannot be used"),
        (b"- !!python/object/apply:os.system [ls]", "cannot be used"),
        (b"- http://a:0", "port"),
        (b"--- []\n--- []\n", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"- http://user:secret@a:1", "user name or password"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_what_it_may_not_hold(data: bytes, why: str) -> None:
    """Whatever it says, it costs little time, and the reason is told."""
    started = monotonic()
    with pytest.raises(ValueError, match=why) as refused:
        parse(data)
    assert monotonic() - started < 2
    assert len(str(refused.value)) < 1000
    assert "secret" not in str(refused.value)


async def test_a_bomb_stops_nothing(file: Path) -> None:
    """327 bytes of nested aliases are refused without holding up the event loop, and only parsed once."""
    assert len(bomb(8)) < 400
    file.write_bytes(bomb(8))
    one = EndpointList(str(file))
    for _ in range(2):
        with pytest.raises(SourceError, match=f"{file} has anchors or aliases"):
            await undisturbed(one.read)


async def test_a_list_that_is_being_written_is_not_taken(file: Path) -> None:
    """A beginning that is valid by itself is not taken for the list."""
    whole = [f"- http://10.0.0.{number}:3001\n" for number in range(10)]
    one = EndpointList(str(file))
    file.write_text("")

    async def write() -> None:
        with file.open("w") as stream:
            for line in whole:
                stream.write(line[:15])
                stream.flush()
                await asyncio.sleep(0.03)
                stream.write(line[15:])
                stream.flush()

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.02)
    assert [entry.port for entry in await one.read()] == [3001] * 10
    await writing


async def test_one_that_changes_all_the_time_keeps_the_last(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that never rests is a failure, and not a wait without end."""
    monkeypatch.setattr(endpoint_list, "_SETTLES", 0.001)
    count = iter(range(1000))

    async def read(path: str, limit: int) -> bytes:
        return b"- http://a:%d" % next(count)

    monkeypatch.setattr(endpoint_list, "read_apart", read)
    with pytest.raises(SourceError, match="changes all the time"):
        await EndpointList(str(file)).read()


@pytest.mark.parametrize("what", ["fifo", "sparse", "folder", "device"])
async def test_what_is_no_list_is_not_read(what: str, tmp_path: Path) -> None:
    """A FIFO, a folder, a device or a file of terabytes is refused at once."""
    path = tmp_path / what
    if what == "fifo":
        os.mkfifo(path)
    elif what == "sparse":
        with path.open("wb") as stream:
            stream.truncate(1 << 41)
    elif what == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(SourceError, match="is larger than" if what == "sparse" else "is not a regular file"):
        await undisturbed(EndpointList(str(path)).read)


async def test_a_hung_mount_stops_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that hangs is given up, holds one thread however often it is repeated, and is over with the mount's
    return."""
    release = threading.Event()
    real = files.read_small_file

    def read(path: str, limit: int) -> bytes:
        release.wait(20)
        return real(path, limit)

    monkeypatch.setattr(files, "read_small_file", read)
    monkeypatch.setattr(endpoint_list, "read_apart", lambda path, limit: files.read_apart(path, limit, 0.05))
    file.write_text("- http://a:1")
    one = EndpointList(str(file))
    before = threading.active_count()
    try:
        for _ in range(5):
            with pytest.raises(SourceError, match="could not be read within"):
                await undisturbed(one.read)
        assert threading.active_count() <= before + 1
    finally:
        release.set()
    monkeypatch.setattr(endpoint_list, "read_apart", files.read_apart)
    assert [entry.host for entry in await one.read()] == ["a"]
