"""The transport of a connection that is gone."""

from __future__ import annotations

from asyncio import Transport
from typing import Final, cast


class DiscardingTransport:
    """Takes and drops everything. A connection gets it in place of its real transport once that is closed: bytes for an
    app that has left go here, and the real transport, which may hold a quarter of a MiB of TLS buffers, is let go.
    """

    def write(self, data: bytes) -> None:
        """Drop them."""

    def writelines(self, pieces: list[bytes]) -> None:
        """Drop them."""

    def get_write_buffer_size(self) -> int:
        """Always 0: nothing is kept."""
        return 0

    def get_extra_info(self, name: str) -> None:
        """Always None: there is no socket."""

    def is_closing(self) -> bool:
        """Always True."""
        return True

    def can_write_eof(self) -> bool:
        """Always False."""
        return False

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""

    def close(self) -> None:
        """It is closed."""

    def abort(self) -> None:
        """It is closed."""


DISCARDING: Final = cast(Transport, DiscardingTransport())
