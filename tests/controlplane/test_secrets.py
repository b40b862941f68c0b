"""Credentials from files: read again on change, kept when unreadable, never shown."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from time import time
from types import MethodType

import pytest

from outrider.config.load import load
from outrider.controlplane import secrets as module
from outrider.controlplane.compile import compile_config
from outrider.controlplane.secrets import Secrets
from outrider.dataplane.policies.credentials import Credential
from tests.fakes import make_attempt


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A mounted secret."""
    path = tmp_path / "key"
    path.write_text("first\n")
    return path


def make(tmp_path: Path, value: str) -> Secrets:
    path = tmp_path / "outrider.yaml"
    path.write_text(
        f"service: a\nservices: {{user: 'http://h:1'}}\ncredentials: {{k: {{header: x-key, value: {value!r}}}}}\n"
    )
    resolved, _ = load([str(path)])
    return Secrets(resolved, compile_config(resolved).credentials)


def line(secrets: Secrets) -> bytes:
    """What is written into an attempt."""
    use = secrets.sources["k"].use
    assert isinstance(use, MethodType)
    credential = use.__self__
    assert isinstance(credential, Credential)
    return credential.stamp(make_attempt())


def refresh(secrets: Secrets) -> None:
    asyncio.run(secrets.refresh("k", secrets.sources["k"]))


def replace(path: Path, text: str) -> None:
    """Change a file as orchestrators do: by renaming another one over it."""
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


def test_value_from_a_file(tmp_path: Path, key: Path) -> None:
    """The credential carries the file's text."""
    assert line(make(tmp_path, f"${{file:{key}}}")) == b"x-key: first\r\n"


def test_text_around_the_reference(tmp_path: Path, key: Path) -> None:
    """A secret may be a part of the value, and stays so when it changes."""
    secrets = make(tmp_path, f"Bearer ${{file:{key}}}")
    replace(key, "second\n")
    refresh(secrets)
    assert line(secrets) == b"x-key: Bearer second\r\n"


def test_changed_file(tmp_path: Path, key: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A changed file is used from the next attempt on, and the log says so without the secret."""
    caplog.set_level(logging.INFO, "outrider")
    secrets = make(tmp_path, f"${{file:{key}}}")
    replace(key, "second\n")
    refresh(secrets)
    assert line(secrets) == b"x-key: second\r\n"
    assert caplog.messages == ["credential k was replaced"]


def test_unchanged_file(tmp_path: Path, key: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is written again with the same text is no change."""
    caplog.set_level(logging.INFO, "outrider")
    secrets = make(tmp_path, f"${{file:{key}}}")
    since = secrets.sources["k"].since
    replace(key, "first")
    refresh(secrets)
    assert secrets.sources["k"].since == since
    assert caplog.messages == []


@pytest.mark.parametrize("text", [None, "", " spaced ", "two\nlines", "ä", "x" * 70_000])
def test_last_value_is_kept(tmp_path: Path, key: Path, text: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """When a file goes, or holds what cannot be used, the last value stays, and the log says so once."""
    secrets = make(tmp_path, f"${{file:{key}}}")
    if text is None:
        key.unlink()
    else:
        replace(key, text)
    for _ in range(3):
        refresh(secrets)
    assert line(secrets) == b"x-key: first\r\n"
    assert len(caplog.messages) == 1
    assert "credential k keeps its last value" in caplog.messages[0]
    assert not text or text not in caplog.text


def test_back_again(tmp_path: Path, key: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that comes back is used again, and the next trouble is told again."""
    secrets = make(tmp_path, f"${{file:{key}}}")
    key.unlink()
    for _ in range(2):  # the first look may have come in the middle of a change
        refresh(secrets)
    replace(key, "second")
    refresh(secrets)
    assert line(secrets) == b"x-key: second\r\n"
    key.unlink()
    for _ in range(2):
        refresh(secrets)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2


async def test_watch(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While watched, a change is taken over by itself."""
    monkeypatch.setattr(module, "_INTERVAL", 0.005)
    secrets = make(tmp_path, f"${{file:{key}}}")
    watching = asyncio.create_task(secrets.watch())
    replace(key, "second")
    async with asyncio.timeout(2):
        while line(secrets) != b"x-key: second\r\n":
            await asyncio.sleep(0.005)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_nothing_to_watch(tmp_path: Path) -> None:
    """Without secrets from files there is nothing to watch."""
    async with asyncio.timeout(1):
        await make(tmp_path, "constant").watch()


def test_looks_often_enough() -> None:
    """A changed secret is taken over within two seconds."""
    assert module._INTERVAL <= 2


def test_ages(tmp_path: Path, key: Path) -> None:
    """The age of a credential counts from its present value."""
    secrets = make(tmp_path, f"${{file:{key}}}")
    secrets.sources["k"].since = time() - 100
    assert secrets.ages()["k"] >= 100
    replace(key, "second")
    refresh(secrets)
    assert 0 <= secrets.ages()["k"] < 50


def test_constant_is_not_read_again(tmp_path: Path) -> None:
    """A credential that cannot change has no template."""
    assert make(tmp_path, "constant").sources["k"].template is None


def test_repr_of_a_credential() -> None:
    """A credential never shows its secret."""
    credential = Credential("x-key", "hunter2")
    assert "hunter2" not in f"{credential!r} {credential}"
    assert "x-key" in repr(credential)


def test_repr_of_a_source(tmp_path: Path, key: Path) -> None:
    """Nor does what remembers where it came from."""
    secrets = make(tmp_path, f"${{file:{key}}}")
    assert "first" not in repr(secrets.sources)


def test_a_pipe_in_place_of_a_file(tmp_path: Path, key: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not read, so nothing waits for somebody to write to it; the last value stays."""
    secrets = make(tmp_path, f"${{file:{key}}}")
    key.unlink()
    os.mkfifo(key)
    for _ in range(3):
        refresh(secrets)
    assert line(secrets) == b"x-key: first\r\n"
    assert caplog.messages == [f"credential k keeps its last value: the file {key} is not a regular file; set it, or "
                               f"write ${{file:{key}:-default}}"]  # fmt: skip
