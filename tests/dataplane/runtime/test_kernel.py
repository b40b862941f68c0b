"""What the kernel knows of a connection."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from outrider.dataplane.runtime.kernel import silent_for


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says")
def test_how_long_the_other_side_has_been_silent() -> None:
    """Since its last segment, also while the connection waited to be accepted; and nothing of a closed one."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        time.sleep(0.05)
        accepted, _ = server.accept()
        with accepted:
            assert 0.03 < silent_for(accepted) < 5
            client.send(b"x")
            accepted.recv(1)
            assert silent_for(accepted) < 0.03
        assert silent_for(accepted) == 0.0
