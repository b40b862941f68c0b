"""`outrider check`: every problem at once, with its line and a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from outrider.cli.verbs import cli

MINIMAL = "service: booking\nservices:\n  user: http://127.0.0.1:3001\n"

MISTAKES = """\
service: booking-service
listen: 4100
outbox: { store: sqlite }
instance: ${NOBODY_SETS_THIS}
defaults:
  timeout: 5000
  timeout: 5s
  retry: {budget: 20}
policies:
  critical: {extends: basic}
services:
  user:
    url: k8s+http://user:3001
    auth: nope
    policy: critcal
  payment:
    url: http://payment:3004
    headers: {set: {x-flag: yes}}
    port: 4102
    polcy: critical
    routes:
      - match: get /payments
        retry: {on_errors: [conect]}
  notification:
    url: http://127.0.0.1:4100
    hosts: [payment]
    delivery: durable
"""

# Line, column, and a word that the complaint or its remedy contains.
EXPECTED = [
    (2, 9, "HOST:PORT"),
    (3, 9, "not supported yet"),
    (4, 11, "NOBODY_SETS_THIS"),
    (6, 12, "did you mean 5000s or 5000ms?"),
    (7, 3, "line 6"),
    (8, 19, "share"),
    (10, 23, 'no policy "basic"'),
    (13, 10, "not supported yet"),
    (14, 11, 'no credential "nope"'),
    (15, 13, 'did you mean "critical"?'),
    (18, 29, "disagree on what yes means"),
    (19, 11, "already used by telemetry.listen"),
    (20, 5, 'did you mean "policy"?'),
    (22, 16, "told apart by case"),
    (23, 29, "connect, reset or timeout"),
    (25, 10, "is Outrider itself"),
    (26, 13, "already belongs to payment"),
    (27, 15, "not supported yet"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a directory of its own, without a configuration in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OUTRIDER_CONFIG", raising=False)


def check(text: str | None = None, *arguments: str) -> Result:
    if text is not None:
        Path("outrider.yaml").write_text(text)
    return CliRunner().invoke(cli, ["check", *arguments], prog_name="outrider")


def test_every_mistake_at_once_for_machines() -> None:
    """One file with many different mistakes: all are told in one run, each with its exact place."""
    result = check(MISTAKES, "--format", "json")
    report = json.loads(result.stdout)
    found = [
        (problem["line"], problem["column"], problem["message"] + problem["hint"]) for problem in report["problems"]
    ]
    assert [place[:2] for place in found] == [place[:2] for place in EXPECTED]
    assert [words for (*_, words), (*_, said) in zip(EXPECTED, found, strict=True) if words not in said] == []
    assert {problem["file"] for problem in report["problems"]} == {"outrider.yaml"}
    assert {problem["severity"] for problem in report["problems"]} == {"error"}
    assert report["ok"] is False
    assert result.exit_code == 78


def test_every_mistake_at_once_for_people() -> None:
    """The text report has file:line:column, the line itself with a caret under the column, and the count."""
    result = check(MISTAKES)
    lines = result.stdout.splitlines()
    source = MISTAKES.splitlines()
    for line, column, _ in EXPECTED:
        (at,) = [n for n, shown in enumerate(lines) if shown.startswith(f"outrider.yaml:{line}:{column}  error  ")]
        assert lines[at + 1] == f"{line:>5} | {source[line - 1]}"
        assert lines[at + 2] == "      | " + " " * (column - 1) + "^"
    assert lines[-1] == f"{len(EXPECTED)} errors, 0 warnings"
    assert result.exit_code == 78


def test_good_configuration() -> None:
    """A good configuration is ok, with a summary and exit code 0."""
    result = check(MINIMAL)
    assert result.exit_code == 0
    assert result.stdout.startswith("ok: 1 services, 1 routes; 0 errors, 0 warnings")
    assert "metric series" in result.stdout


def test_a_strict_check_that_fails_does_not_say_ok(tmp_path: Path) -> None:
    """With --strict, a warning is the verdict."""
    file = tmp_path / "outrider.yaml"
    file.write_text(
        MINIMAL.replace("3001", "3001\n    queue: { size: 3 }").replace("user: http", "user:\n    url: http")
    )
    result = CliRunner().invoke(cli, ["check", "--strict", "-c", str(file)])
    assert result.exit_code == 78, result.output
    assert "failed, because --strict" in result.stdout
    assert "ok:" not in result.stdout


def test_good_configuration_for_machines() -> None:
    """For machines, too, a good configuration is ok."""
    result = check(MINIMAL, "--format", "json")
    report = json.loads(result.stdout)
    assert (report["ok"], report["problems"]) == (True, [])
    assert "admin.token is not set" in report["notes"][0]
    assert result.exit_code == 0


SHADOWED = MINIMAL + "  pay: {url: 'http://h:1', routes: [{match: '* /**'}, {match: GET /a}]}\n"


def test_warnings_pass() -> None:
    """Warnings are shown and pass."""
    result = check(SHADOWED)
    assert "outrider.yaml:4:63  warning  services.pay.routes[1].match: never reached" in result.stdout
    assert "0 errors, 1 warning" in result.stdout
    assert result.exit_code == 0


def test_warnings_fail_when_strict() -> None:
    """With --strict warnings fail."""
    assert check(SHADOWED, "--strict").exit_code == 78
    report = json.loads(check(SHADOWED, "--strict", "--format", "json").stdout)
    assert report["ok"] is False
    assert check(MINIMAL, "--strict").exit_code == 0


def test_unusable_secret() -> None:
    """A secret that cannot stand in a header is an error at its line, and is not shown but there."""
    text = MINIMAL + "credentials:\n  k:\n    header: x-k\n    value: ${SECRET}\n"
    Path("outrider.yaml").write_text(text)
    result = CliRunner().invoke(cli, ["check"], env={"SECRET": "hunter2\nhunter3"})
    assert result.exit_code == 78
    assert "outrider.yaml:7:12  error  credentials.k.value: a credential must be one line" in result.stdout
    assert "hunter" not in result.stdout


def test_flags() -> None:
    """`--service` and `--set` are checked like a file."""
    assert check(None, "--service", "user=http://h:1").exit_code == 0
    result = check(None, "--service", "user=http://h:1", "--set", "defaults.timeout=5")
    assert result.exit_code == 78
    assert "--set defaults.timeout  error  defaults.timeout: expected a duration" in result.stdout


def test_directories_and_files_in_order() -> None:
    """`-c` may be given again and again; the last one wins, and each problem is told in its file."""
    Path("d").mkdir()
    Path("d/1.yaml").write_text(MINIMAL)
    Path("d/2.yaml").write_text("listen: 4100\n")
    result = check(None, "-c", "d")
    assert "d/2.yaml:1:9  error  listen" in result.stdout
    Path("good.yaml").write_text("listen: 127.0.0.1:4100\n")
    assert check(None, "-c", "d", "-c", "good.yaml").exit_code == 0


def test_configuration_from_the_environment() -> None:
    """OUTRIDER_CONFIG names the file."""
    Path("env.yaml").write_text(MINIMAL)
    assert CliRunner().invoke(cli, ["check"], env={"OUTRIDER_CONFIG": "env.yaml"}).exit_code == 0
    result = CliRunner().invoke(cli, ["check"], env={"OUTRIDER_CONFIG": "none.yaml"})
    assert result.exit_code == 78
    assert "none.yaml  error  cannot be read" in result.stdout


def test_wrong_usage() -> None:
    """What the command line itself gets wrong is exit code 2."""
    assert check(MINIMAL, "--format", "xml").exit_code == 2
    assert check(MINIMAL, "--nope").exit_code == 2


def test_unusable_secret_does_not_hide_warnings() -> None:
    """The report of an unusable secret still has the warnings."""
    text = SHADOWED + "credentials:\n  k:\n    header: x-k\n    value: ' spaced '\n"
    problems = json.loads(check(text, "--format", "json").stdout)["problems"]
    assert sorted(problem["severity"] for problem in problems) == ["error", "warning"]


def test_merge_keys_without_end() -> None:
    """No file makes `check` fail with anything but a report."""
    result = check(MINIMAL + "policies:\n  p: &p\n    <<: *p\n")
    assert result.exit_code == 78
    assert "Traceback" not in result.output


GUARD = """
service: payment
inbound:
  listen: 127.0.0.1:0
  app: http://127.0.0.1:1
  accept: [ { header: x-api-key, values: [key-of-the-platform-0123456789abc], caller: CALLER } ]
  allow: [ { caller: RULE, match: POST /payments } ]
  idempotency: { store: STORE, MORE }
services: { user: 'http://h:1' }
"""


def guard(caller: str = "booking", rule: str = "booking", store: str = "/var/lib/outrider/k.db", more: str = "") -> str:
    return GUARD.replace("CALLER", caller).replace("RULE", rule).replace("STORE", store).replace("MORE", more)


@pytest.mark.parametrize(
    ("caller", "rule", "warned"),
    [
        ("'{header:x-service-name}'", "booking", True),
        ("'{header:x-service-name}'", "'booking*'", True),
        ("'book-{header:x-service-name}'", "'b*'", True),
        ("'book-{header:x-service-name}'", "book-1", True),
        ("'{header:x-service-name}'", "'*'", False),
        ("'book-{header:x-service-name}'", "booking", False),
        ("'book-{header:x-service-name}'", "'stock*'", False),
        ("booking", "booking", False),
    ],
)
def test_a_key_that_lets_its_holder_take_any_name_is_warned_of(caller: str, rule: str, warned: bool) -> None:
    """Where rules are about names, and only there; the remedy is named."""
    result = check(guard(caller, rule, str(Path.cwd() / "k.db")))
    assert result.exit_code == 0, result.stdout
    assert ("takes any name it likes" in result.stdout) == warned
    assert not warned or "outrider.yaml:6:13  warning" in result.stdout
    assert not warned or "a key of its own for each caller" in result.stdout


@pytest.mark.parametrize("more", ["on_error: refuse", "on_error: pass"])
def test_a_store_that_cannot_be_opened_here_is_named(more: str) -> None:
    """Without failing the check, which is often made on another machine, or by another user."""
    Path("file").touch()
    store = f"{Path.cwd()}/file/k.db"
    result = check(guard(store=store, more=more), "--strict")
    assert result.exit_code == 0, result.stdout
    (note,) = [line for line in result.stdout.splitlines() if "inbound.idempotency.store" in line]
    assert ("would be refused" in note) == (more == "on_error: refuse")
    assert note.endswith(f"{Path.cwd()}/file cannot be written")
    assert note in json.loads(check(guard(store=store, more=more), "--format", "json").stdout)["notes"]
    assert "inbound.idempotency.store" not in check(guard(store=f"{Path.cwd()}/folder/k.db")).stdout
