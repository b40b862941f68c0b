"""Verbs find a running sidecar by its configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from outrider.cli.health import main as health
from outrider.cli.ports import PortError, port_of
from outrider.cli.verbs import cli
from outrider.cli.wait import main as wait
from tests.cli.test_health import OK, answering

ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 9\r\n\r\ndraining\n"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a configuration into an empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OUTRIDER_CONFIG", raising=False)

    def written(text: str, name: str = "outrider.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return written


def test_without_a_configuration_the_usual_ports_are_asked(write: Write) -> None:
    """The defaults of the contract."""
    assert port_of("telemetry") == "127.0.0.1:4102"
    assert port_of("admin") == "127.0.0.1:4101"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("admin: { listen: '127.0.0.1:5101' }", "127.0.0.1:5101"),
        ("admin: { listen: 0.0.0.0:5101 }", "127.0.0.1:5101"),
        ("admin: { listen: '[::]:5101' }", "[::1]:5101"),
        ("admin: { listen: '10.0.0.1:${PORT_OF_A_TEST}' }", "10.0.0.1:5999"),
        ("admin: { listen: '10.0.0.1:${NOT_SET_IN_A_TEST:-7}' }", "10.0.0.1:7"),
        ("admin: { token: '${file:/nowhere}' }", "127.0.0.1:4101"),
        ("telemetry: { listen: '127.0.0.1:5102' }", "127.0.0.1:4101"),
        ("admin: nonsense", "127.0.0.1:4101"),
        ("- admin", "127.0.0.1:4101"),
        ("# admin", "127.0.0.1:4101"),
    ],
)
def test_the_address_is_the_configurations(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str, address: str
) -> None:
    """With its variables, every address reached by loopback; secrets need not be at hand."""
    monkeypatch.setenv("PORT_OF_A_TEST", "5999")
    file = write(text, "other.yaml")
    assert port_of("admin", [str(file)]) == address


def test_it_is_searched_for_as_run_does(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """`outrider.yaml` here, then OUTRIDER_CONFIG, then `-c`; in a folder the later file wins."""
    write("admin: { listen: 127.0.0.1:1 }")
    assert port_of("admin") == "127.0.0.1:1"
    monkeypatch.setenv("OUTRIDER_CONFIG", str(write("admin: { listen: 127.0.0.1:2 }", "two.yaml")))
    assert port_of("admin") == "127.0.0.1:2"
    write("admin: { listen: 127.0.0.1:3 }", "conf.d/1.yaml")
    last = write("admin: { listen: 127.0.0.1:4 }", "conf.d/2.yaml")
    assert port_of("admin", [str(last.parent)]) == "127.0.0.1:4"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("admin: { listen: 127.0.0.1:0 }", "another one at every start"),
        ("admin: { listen: ", "cannot be understood"),
        ("admin: { listen: '${NOT_SET_IN_A_TEST}' }", "NOT_SET_IN_A_TEST"),
    ],
)
def test_what_cannot_be_found_is_said(write: Write, text: str, why: str) -> None:
    """Rather than asking some other sidecar."""
    with pytest.raises(PortError, match=why):
        port_of("admin", [str(write(text))])
    with pytest.raises(PortError, match="No such file"):
        port_of("admin", ["/nowhere.yaml"])


def test_health_and_wait_ask_it(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """With `-c`, and without any option in the folder of the configuration."""
    for words in ([], ["-c", "outrider.yaml"]):
        for verb in (health, wait):
            with answering(OK) as (address, _):
                write(f"telemetry: {{ listen: '{address}' }}")
                assert verb(words) == 0
    for verb in (health, wait):
        with pytest.raises(SystemExit) as caught:
            verb(["-c", "/nowhere.yaml"])
        assert caught.value.code == 2
        assert "/nowhere.yaml: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["drain", "circuits", "keys", "fault"])
def test_the_other_verbs_ask_it(write: Write, verb: str) -> None:
    """Each of them."""
    body = json.dumps({"circuits": {"user": {}}, "keys": {}, "faults": []}).encode()
    answer = b"HTTP/1.1 %d Fine\r\nContent-Length: %d\r\n\r\n%b" % (202 if verb == "drain" else 200, len(body), body)
    more = ["--json"] if verb == "circuits" else []
    with answering(answer) as (address, asked):
        write(f"admin: {{ listen: '{address}' }}")
        done = CliRunner().invoke(cli, [verb, *more])
        assert (done.exit_code, len(asked)) == (0, 1)
    done = CliRunner().invoke(cli, [verb, "-c", "/nowhere.yaml"])
    assert done.exit_code == 2
    assert "No such file" in done.output


def test_health_stays_light_with_a_configuration(write: Write) -> None:
    """A configuration that says nothing about the telemetry port costs no YAML library."""
    write("service: booking\nservices: { user: 'http://127.0.0.1:1' }\n")
    code = (
        "import sys; from outrider.cli.ports import port_of; port_of('telemetry')\n"
        "print(sorted({'click', 'asyncio', 'yaml', 'pydantic', 'aiohttp', 'uvloop'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("words", [["--for", "5s"], ["--probability", "50%"], ["--clear", "--reset"]])
def test_a_fault_that_says_nothing_is_a_usage_error(words: list[str]) -> None:
    """How long or how often, but not what: exit code 2, and the sidecar is not asked."""
    done = CliRunner().invoke(cli, ["fault", "user", *words, "--admin", "127.0.0.1:1"])
    assert done.exit_code == 2
    assert "Usage" in done.output
