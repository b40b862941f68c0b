"""What a start imports: libraries that calls will need, so that no call waits for them, and no others."""

from __future__ import annotations

import subprocess
import sys

import pytest

_START = """
import sys
from outrider.config.load import load
from outrider.controlplane.inbound import compile_guard
resolved, _ = load([sys.argv[1]], environment={})
compile_guard(resolved.config, resolved.config.inbound)
print("jwt" in sys.modules)
"""
KEY = "k" * 32


@pytest.mark.parametrize(
    ("accept", "imported"),
    [
        (f"{{ jwt: {{ alg: HS256, key: {KEY}, audience: a }} }}", "True"),
        (f"{{ header: x-key, values: [{KEY}] }}", "False"),
    ],
)
def test_the_library_for_tokens_is_there_before_the_first_token(tmp_path: object, accept: str, imported: str) -> None:
    """It takes 90 ms to import, in which nothing else would go on; where no tokens are accepted, nothing imports it."""
    file = f"{tmp_path}/a.yaml"
    inbound = f"inbound: {{ listen: '127.0.0.1:1', app: 'http://a:1', accept: [ {accept} ] }}"
    with open(file, "w", encoding="utf-8") as text:
        text.write(f"service: a\nservices: {{ u: 'http://a' }}\n{inbound}\n")
    ran = subprocess.run([sys.executable, "-c", _START, file], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.strip() == imported
