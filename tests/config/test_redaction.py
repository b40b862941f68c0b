"""Secrets are hidden wherever a configuration, or a complaint about it, is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from outrider.config.load import load
from outrider.config.problems import Problem
from outrider.config.redaction import shown_values, without
from outrider.config.source import read_text
from outrider.controlplane.admin.server import redacted
from outrider.errors import ConfigError

SECRET = "s3cret-Zx9"
ENVIRONMENT = {"SECRET": SECRET, "SHORT": "a7", "URL": f"http://user:{SECRET}@host:1/?password={SECRET}"}

EVERYTHING = f"""
service: orders
instance: "${{SECRET}}"
admin: {{ listen: 127.0.0.1:4101, token: {SECRET}-0123456789 }}
redis: {{ url: 'redis://:p@{SECRET}@host:6379/0?password={SECRET}' }}
inbound:
  listen: 127.0.0.1:4103
  app: http://127.0.0.1:3003
  accept:
    - {{ header: x-api-key, values: [{SECRET}-0123456789012345678901234567, '${{SECRET}}'] }}
    - {{ jwt: {{ alg: HS256, key: {SECRET}-0123456789012345678901234567, audience: orders }} }}
    - {{ jwt: {{ alg: RS256, jwks: 'https://u:{SECRET}@host/keys?token={SECRET}', audience: orders }} }}
credentials:
  plain: {{ header: x-key, value: {SECRET} }}
  printed: {{ header: x-printed, command: [/bin/echo, --password, {SECRET}] }}
  minted: {{ header: x-minted, jwt: {{ alg: HS256, key: {SECRET}-0123456789012345678901234567,
             claims: {{ role: {SECRET} }} }} }}
  issued: {{ oauth2: {{ token_url: 'http://127.0.0.1:1/t', client_id: me, client_secret: {SECRET} }} }}
services:
  user:
    url: http://127.0.0.1:3001
    health_check: {{ path: '/health?token={SECRET}' }}
    headers: {{ set: {{ x-one: {SECRET}, x-two: '{{service}}', x-three: 'Bearer {SECRET}' }} }}
"""


def problems_of(path: Path, text: str, settings: Sequence[str] = (), services: Sequence[str] = ()) -> list[Problem]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load([str(path)], environment=ENVIRONMENT, settings=settings, services=services)
    return caught.value.problems


def as_told(problems: Sequence[Problem]) -> str:
    """Everything that `outrider check` prints of them, in both formats."""
    return "\n".join([problem.render() for problem in problems] + [json.dumps(one.as_dict()) for one in problems])


def test_no_secret_is_shown_of_a_configuration(tmp_path: Path) -> None:
    """Neither under a key for secrets, nor from a variable, nor in a URL, nor set on the command line."""
    (tmp_path / "outrider.yaml").write_text(EVERYTHING)
    resolved, _ = load(
        [str(tmp_path / "outrider.yaml")],
        environment={"SECRET": SECRET * 4},
        settings=[f"credentials.more.value={SECRET}", "credentials.more.header=x-more"],
        services=["other=http://127.0.0.1:1"],
    )
    page = redacted(resolved.document, resolved.config.observability.redact)
    assert SECRET not in json.dumps(page)
    shown = page["config"]
    assert shown["instance"] == "***"
    assert shown["redis"]["url"] == "redis://***@host:6379/0?***"
    assert shown["inbound"]["accept"][0]["values"] == ["***", "***"]
    assert shown["inbound"]["accept"][2]["jwt"]["jwks"] == "https://***@host/keys?***"
    assert shown["credentials"]["printed"]["command"] == ["/bin/echo", "***", "***"]
    assert shown["credentials"]["issued"]["oauth2"]["client_id"] == "me"
    assert shown["services"]["user"]["headers"]["set"] == {"x-one": "***", "x-two": "{service}", "x-three": "***"}
    assert shown["services"]["user"]["health_check"]["path"] == "/health?***"
    assert page["provenance"]["credentials.more.value"] == "--set credentials.more.value"


def test_what_is_no_secret_is_shown(tmp_path: Path) -> None:
    """A configuration without any is shown as it is."""
    text = "service: a\nservices: {user: {url: 'http://h:1', timeout: 5s, retry: {max_retries: 1}}}\n"
    document = read_text(text, "a.yaml", {})
    assert shown_values(document) == document.values


@pytest.mark.parametrize(
    "line",
    [
        "user: '${URL}'",
        "user: { url: '${URL}' }",
        "user: { url: ['${URL}', http://127.0.0.1:1] }",
        "user: 'http://user:${SECRET}@host:1'",
        "user: 'x${URL}'",
        "user: { url: http://h:1, timeout: '${SECRET}' }",
        "user: { url: http://h:1, timeout: '${SHORT}' }",
        "user: { url: http://h:1, port: '${SECRET}' }",
        "user: { url: http://h:1, balance: '${SECRET}' }",
        "user: { url: http://h:1, policy: '${SECRET}' }",
        "user: { url: http://h:1, auth: '${SECRET}' }",
        "user: { url: http://h:1, hosts: '${SECRET}' }",
        "user: { url: http://h:1, retry: '${SECRET}' }",
        "user: { url: http://h:1, headers: { set: { x-a: '${SECRET}\u00e4' } } }",
        "user: { url: http://h:1, routes: [{ match: '${SECRET}' }] }",
        "user: { url: http://h:1, fallback: '${SECRET}' }",
        "user: { url: http://h:1, tls: { ca: '/${SECRET}' } }",
        f"user: 'http://user:{SECRET}@host:1'",
        f"user: 'http://user:{SECRET}/@host:1'",
        f"user: http://host/?password={SECRET}",
        f"user:http://user:{SECRET}@host:1",
    ],
)
def test_no_complaint_shows_a_secret(tmp_path: Path, line: str) -> None:
    """Whatever is wrong with a value from a variable or file, or with a URL: not in text, not for machines."""
    problems = problems_of(tmp_path / "outrider.yaml", f"service: a\nservices:\n  {line}\n")
    told = as_told(problems)
    assert SECRET not in told
    assert "got a7" not in told


@pytest.mark.parametrize(
    "rest",
    [
        f"admin: {{ token: [{SECRET}] }}",
        f"admin: {{ token: {SECRET[:5]} }}",
        f"redis: {{ url: 'redis:/:{SECRET}@host' }}",
        f"redis: {{ url: 'redis://:{SECRET}/@host' }}",
        f"credentials: {{ k: {{ header: x-a, value: '{SECRET} ' }} }}",
        f"credentials: {{ k: {{ header: x-a, value: {SECRET}, oops: 1 }} }}",
        f"credentials: {{ k: {{ jwt: {{ alg: HS256, key: {SECRET} }} }} }}",
        f"credentials: {{ k: {{ jwt: {{ alg: RS256, key: {SECRET} }} }} }}",
        f"credentials: {{ k: {{ header: x-a, command: '{SECRET}' }} }}",
        f"inbound: {{ listen: '127.0.0.1:1', app: 'http://h:1', accept: [{{ header: x-a, values: ['{SECRET} '] }}] }}",
    ],
)
def test_no_complaint_shows_a_secret_that_is_written_down(tmp_path: Path, rest: str) -> None:
    """The line that is shown of a file, too, is without the secrets in it."""
    secret = SECRET[:5] if SECRET not in rest else SECRET
    assert secret not in as_told(
        problems_of(tmp_path / "outrider.yaml", f"service: a\nservices: {{ user: http://h:1 }}\n{rest}\n")
    )


@pytest.mark.parametrize(
    "setting",
    [
        f"credentials.k.value={SECRET}",
        f"admin.token={SECRET[:9]}",
        f"services.user=htp://u:{SECRET}@h",
        f"redis.url=redis:/:{SECRET}@h",
    ],
)
def test_no_complaint_shows_what_was_set_on_the_command_line(tmp_path: Path, setting: str) -> None:
    """The place of a setting is its key alone."""
    told = as_told(problems_of(tmp_path / "a.yaml", "service: a\nservices: {user: 'http://h:1'}\n", settings=[setting]))
    assert f"--set {setting.partition('=')[0]}" in told
    assert SECRET[:9] not in told


def test_anchors_for_other_places_may_be_anything() -> None:
    """What stands under a key that begins with x- is hidden altogether."""
    document = read_text(f"x-common: &one {{ a: {SECRET}, b: [{SECRET}] }}", "a.yaml", {})
    assert shown_values(document) == {"x-common": {"a": "***", "b": ["***"]}}


def test_a_sentence_stays_readable() -> None:
    """Short texts are hidden only where they stand alone."""
    assert without("expected a map, got a", {"a"}) == "expected *** map, got ***"
    assert without("between 10 and 100, got 1", {"1"}) == "between 10 and 100, got ***"
    assert without("got long-secret!", {"long-secret", "long"}) == "got ***!"
    assert without(r"got two\nlines", {"two\nlines"}) == "got ***"


@pytest.mark.parametrize("name", ["user", "name", "password", "URL", "not"])
def test_our_own_words_are_never_hidden(tmp_path: Path, name: str) -> None:
    """A user or password that is called like a word of the sentence takes nothing out of it."""
    (only,) = problems_of(tmp_path / "o.yaml", f"service: b\nservices: {{ a: 'http://{name}:{name}@127.0.0.1:1' }}\n")
    assert only.message == "a URL must not hold a user name or password"
    assert f"{name}:{name}" not in as_told([only])


def test_values_within_a_sentence_are_hidden(tmp_path: Path) -> None:
    """A secret is hidden where the sentence quotes it, and the words around it stay."""
    text = "service: b\nservices: { a: { url: 'http://a:1', timeout: '${SHORT}' } }\nlisten: '${SECRET}'\n"
    told = as_told(problems_of(tmp_path / "o.yaml", text))
    assert "expected HOST:PORT like 127.0.0.1:4100, got ***" in told
    assert "got a value that is not shown" in told


UNPARSABLE = [
    f"services: {{}}\ncredentials:\n  k:\n    value: *{SECRET}\n",
    f"services: {{}}\ncredentials:\n  k:\n    value: %{SECRET}\n",
    f"services: {{}}\ncredentials:\n  k:\n    value: '{SECRET}\n",
    f"services: {{}}\ncredentials:\n  k:\n    value: '{SECRET}' x\n",
    f"services: {{}}\ncredentials:\n  k:\n    value: !{SECRET} x\n",
    f"services: {{}}\ncredentials:\n  k:\n    value: !!{SECRET}\n",
    f"services: {{}}\ncredentials:\n  k:\n    value: &{SECRET}@ x: y\n",
    f"services: {{}}\ncredentials:\n  k:\n    value: x: {SECRET}\n",
    f"services: {{}}\ncredentials:\n  k:\n    value: {SECRET}: {SECRET}\n",
    f"services: {{}}\ncredentials:\n  k:\n    value:{SECRET}\n    header: x\n",
    f"services: {{}}\ncredentials:\n  k: {{ header: x-a, value: [{SECRET} }}\n",
    f'services: {{}}\ncredentials:\n  k: {{ header: x-a, value: "{SECRET}\\q" }}\n',
    f"services: {{}}\ncredentials:\n  k:\n    value: |\n      {SECRET}\n   {SECRET}\n",
    f"services: {{}}\ncredentials:\n  k:\n   - {SECRET}\n   value: {SECRET}\n",
]


@pytest.mark.parametrize("text", UNPARSABLE)
def test_a_line_that_cannot_be_read_shows_no_value(tmp_path: Path, text: str) -> None:
    """What is secret in it is not known, so place and column are told, and its key at most."""
    found = problems_of(tmp_path / "o.yaml", f"service: b\n{text}")
    assert SECRET not in as_told(found)
    assert all(one.mark.line > 0 and one.mark.column > 0 for one in found)


def test_a_number_that_is_read_in_two_ways_is_not_shown_of_a_secret(tmp_path: Path) -> None:
    """01234567 as an unquoted token: neither in the sentence nor in the line."""
    found = problems_of(
        tmp_path / "o.yaml", "service: b\nadmin: { token: 0123456701234567 }\nservices: { a: 'http://a' }\n"
    )
    assert "0123456701234567" not in as_told(found)
