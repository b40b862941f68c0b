"""From files, flags and environment to a resolved configuration, or to all problems at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outrider.config.load import load
from outrider.config.problems import Problem
from outrider.config.resolve import Resolved
from outrider.errors import EXIT_CONFIG, ConfigError

MINIMAL = "service: booking\nservices:\n  user: http://127.0.0.1:3001\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a directory of its own."""
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def problems_of(*paths: str, **options: object) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(paths, **{"environment": {}, **options})
    return caught.value.problems


def shown(problems: list[Problem]) -> list[str]:
    return [f"{problem.mark} {problem.message}" for problem in problems]


def urls(resolved: Resolved) -> dict[str, tuple[str, ...]]:
    return {service.name: tuple(target.url for target in service.targets) for service in resolved.services}


# ---------------------------------------------------------------- where it comes from


def test_given_file() -> None:
    """A file that is given is read."""
    resolved, problems = load([write("a.yaml", MINIMAL)], environment={})
    assert resolved.config.service == "booking"
    assert urls(resolved) == {"user": ("http://127.0.0.1:3001",)}
    assert problems == []


def test_file_from_the_environment() -> None:
    """OUTRIDER_CONFIG names the file when none is given."""
    write("outrider.yaml", MINIMAL)
    resolved, _ = load(environment={"OUTRIDER_CONFIG": write("env.yaml", MINIMAL.replace("booking", "other"))})
    assert resolved.config.service == "other"


def test_several_files_from_the_environment() -> None:
    """OUTRIDER_CONFIG may name several files, separated as in PATH; later ones win."""
    names = [write("a.yaml", MINIMAL), write("b.yaml", "service: later\n")]
    resolved, _ = load(environment={"OUTRIDER_CONFIG": os.pathsep.join(names)})
    assert resolved.config.service == "later"
    assert "user" in urls(resolved)


def test_given_file_comes_before_the_environment() -> None:
    """`-c` is stronger than OUTRIDER_CONFIG."""
    resolved, _ = load([write("a.yaml", MINIMAL)], environment={"OUTRIDER_CONFIG": "missing.yaml"})
    assert resolved.config.service == "booking"


def test_usual_place() -> None:
    """Without both, ./outrider.yaml is read."""
    write("outrider.yaml", MINIMAL)
    assert load(environment={})[0].config.service == "booking"


@pytest.mark.skipif(Path("/etc/outrider/outrider.yaml").exists(), reason="this machine has a configuration")
def test_nothing_anywhere() -> None:
    """Without any configuration the places that were tried are listed, with what to do."""
    (problem,) = problems_of()
    assert "outrider.yaml, " in problem.message
    assert "/etc/outrider/outrider.yaml" in problem.message
    assert "OUTRIDER_CONFIG" in problem.message
    assert "--service" in problem.hint


def test_directory_in_order() -> None:
    """A directory is all its YAML files in the order of their names, and nothing else in it."""
    write("d/20-b.yaml", "service: twenty\nservices: {b: 'http://b:1'}\n")
    write("d/10-a.yml", "service: ten\nservices: {a: 'http://a:1', b: 'http://old:1'}\n")
    write("d/README.md", "not: [yaml")
    write("d/sub.yaml/x.yaml", "service: sub\n")
    resolved, _ = load(["d"], environment={})
    assert resolved.config.service == "twenty"
    assert urls(resolved) == {"a": ("http://a:1",), "b": ("http://b:1",)}


def test_files_in_the_order_given() -> None:
    """Later files win: maps merge by key, lists and scalars are replaced."""
    first = write("z.yaml", f"{MINIMAL}defaults: {{timeout: 1s, retry: {{max_retries: 1, on_status: [500, 502]}}}}\n")
    second = write("a.yaml", "defaults: {timeout: 2s, retry: {on_status: [503]}}\n")
    policy = load([first, second], environment={})[0].services[0].policy
    assert policy.timeout == 2.0
    assert policy.retry is not None
    assert (policy.retry.max_retries, policy.retry.on_status) == (1, [503])


def test_problem_in_the_second_file() -> None:
    """A problem is told in the file that it is in."""
    write("b.yaml", "defaults:\n  timeout: 5\n")
    (problem,) = problems_of(write("a.yaml", MINIMAL), "b.yaml")
    assert str(problem.mark) == "b.yaml:2:12"


def test_problems_in_all_files() -> None:
    """One broken file does not hide what is wrong in another."""
    marks = [
        str(problem.mark) for problem in problems_of(write("a.yaml", f"{MINIMAL}x: 1\n"), write("b.yaml", "z: 1\n"))
    ]
    assert marks == ["a.yaml:4:1", "b.yaml:1:1"]


def test_empty_file() -> None:
    """An empty file lacks what is required, with examples."""
    problems = problems_of(write("a.yaml", ""))
    assert shown(problems) == [
        'a.yaml:1:1 the key "service" is missing',
        'a.yaml:1:1 the key "services" is missing',
    ]
    assert problems[1].hint.endswith("services: { user: http://127.0.0.1:3001 }")


def test_missing_file_is_named() -> None:
    """A file that is not there is an error with its name and the reason."""
    assert shown(problems_of("missing.yaml"))[0] == "missing.yaml cannot be read: No such file or directory"


def test_exit_code() -> None:
    """A bad configuration has an exit code of its own and counts its errors."""
    with pytest.raises(ConfigError, match="1 error in the configuration") as caught:
        load([write("a.yaml", f"{MINIMAL}x: 1\n")], environment={})
    assert caught.value.exit_code == EXIT_CONFIG == 78


# ---------------------------------------------------------------- flags


def test_service_flag_without_a_file() -> None:
    """`--service` alone is a complete configuration."""
    resolved, _ = load(services=["user=http://h:1", "pay=http://h:2"], environment={})
    assert resolved.config.service == "app"
    assert urls(resolved) == {"user": ("http://h:1",), "pay": ("http://h:2",)}


def test_service_flag_over_a_file() -> None:
    """`--service` adds to the file, or takes the place of what it says."""
    resolved, _ = load([write("a.yaml", MINIMAL)], services=["user=http://h:1", "pay=http://h:2"], environment={})
    assert resolved.config.service == "booking"
    assert urls(resolved) == {"user": ("http://h:1",), "pay": ("http://h:2",)}


@pytest.mark.parametrize("flag", ["user", "=http://h:1", ""])
def test_malformed_service_flag(flag: str) -> None:
    """A `--service` that is not NAME=URL is an error that shows it."""
    assert any("expected NAME=VALUE" in line and "--service" in line for line in shown(problems_of(services=[flag])))


def test_service_flag_with_a_wrong_url() -> None:
    """A wrong URL on the command line is told with the flag as its place."""
    (problem,) = problems_of(services=["user=h:1"])
    assert str(problem.mark) == "--service user"
    assert "expected a URL" in problem.message


def test_set_flag() -> None:
    """`--set` sets one dotted key, typed as in a file, and the last one wins."""
    settings = ["service=other", "defaults.timeout=2s", "defaults.retry.max_retries=1", "defaults.timeout=3s"]
    resolved, _ = load([write("a.yaml", MINIMAL)], settings=settings, environment={})
    policy = resolved.services[0].policy
    assert resolved.config.service == "other"
    assert policy.timeout == 3.0
    assert policy.retry is not None
    assert policy.retry.max_retries == 1


def test_set_flag_with_structure() -> None:
    """The value of `--set` may be a list, a map, a switch or a reference."""
    settings = [
        "defaults.retry={max_retries: 1, on_status: [503]}",
        "defaults.circuit_breaker=false",
        "instance=${POD}",
    ]
    resolved, _ = load([write("a.yaml", MINIMAL)], settings=settings, environment={"POD": "p-1"})
    policy = resolved.services[0].policy
    assert policy.retry is not None
    assert (policy.retry.max_retries, policy.retry.on_status) == (1, [503])
    assert policy.circuit_breaker is None
    assert resolved.instance == "p-1"


def test_set_flag_is_stronger_than_service_flag() -> None:
    """`--set` has the last word."""
    resolved, _ = load(services=["user=http://h:1"], settings=["services.user=http://h:2"], environment={})
    assert urls(resolved) == {"user": ("http://h:2",)}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("service", "expected NAME=VALUE"),
        ("=x", "expected NAME=VALUE"),
        ("defaults.timeout=5", "did you mean 5s or 5ms?"),
        ("defaults.timout=5s", "unknown key"),
        ("instance=${NOPE}", "NOPE is not set"),
        ("service=a: b", "not valid YAML"),
    ],
)
def test_wrong_set_flag(flag: str, message: str) -> None:
    """A wrong `--set` is told with the key as its place; its value may be a secret."""
    problems = problems_of(write("a.yaml", MINIMAL), settings=[flag])
    assert all(str(problem.mark).startswith(f"--set {flag.partition('=')[0]}") for problem in problems)
    assert message in problems[-1].message


# ---------------------------------------------------------------- all at once


def test_every_kind_of_problem_at_once() -> None:
    """Mistakes of syntax level, of values and of references are all told in one go."""
    problems = problems_of(
        write(
            "a.yaml",
            "service: booking\n"
            "service: twice\n"
            "instance: ${NOPE}\n"
            "defaults: {timeout: 5}\n"
            "services:\n"
            "  user: {url: 'http://h:1', policy: nope, delivery: durable, hosts: [yes], auth: nope}\n"
            "  self: http://127.0.0.1:4100\n",
        )
    )
    assert [(problem.mark.line, problem.mark.column) for problem in problems] == [
        (2, 1),
        (3, 11),
        (4, 21),
        (6, 37),
        (6, 53),
        (6, 70),
        (6, 82),
        (7, 9),
    ]


def test_one_complaint_per_unset_variable() -> None:
    """A value that cannot be had is complained about once, and what follows from it is not."""
    text = f"{MINIMAL}defaults: {{timeout: '${{A}}', retry: {{budget: '${{B}}'}}, balance: '${{C}}'}}\nlisten: ${{D}}\n"
    messages = [problem.message for problem in problems_of(write("a.yaml", text))]
    assert [message.partition(" is not set")[0][-1] for message in messages] == ["A", "B", "C", "D"]


def test_warnings_do_not_stop() -> None:
    """Warnings are returned beside a configuration that works."""
    text = f"{MINIMAL}  pay: {{url: 'http://h:1', retry: {{methods: [POST]}}}}\n"
    _, problems = load([write("a.yaml", text)], environment={})
    assert [problem.severity for problem in problems] == ["warning"]


def test_warnings_are_told_beside_errors() -> None:
    """An error does not hide a warning."""
    text = f"{MINIMAL}  pay: {{url: 'http://h:1', retry: {{methods: [POST]}}}}\nx: 1\n"
    assert {problem.severity for problem in problems_of(write("a.yaml", text))} == {"warning", "error"}


# ---------------------------------------------------------------- one mistake, one complaint


@pytest.mark.parametrize(
    "text", ["a: [1", "- a", "a:\n\tb: 1", "\x00"], ids=["broken", "list", "tab", "control character"]
)
def test_unreadable_text_is_one_problem(text: str) -> None:
    """A file that cannot be understood is not also blamed for the keys that nobody could read in it."""
    assert len(problems_of(write("a.yaml", text))) == 1


def test_missing_file_is_one_problem() -> None:
    """Nor is a file that is not there."""
    assert len(problems_of("missing.yaml")) == 1


def test_directory_without_files() -> None:
    """A directory without any YAML file is one error that names the directory."""
    Path("d").mkdir()
    (problem,) = problems_of("d")
    assert problem.mark.file == "d"


def test_set_over_the_short_form() -> None:
    """`--set services.user.timeout` works for a service that is written as a URL alone."""
    resolved, _ = load([write("a.yaml", MINIMAL)], settings=["services.user.timeout=2s"], environment={})
    assert urls(resolved) == {"user": ("http://127.0.0.1:3001",)}
    assert resolved.services[0].policy.timeout == 2.0


def test_service_flag_with_a_dot() -> None:
    """A service name may contain dots, on the command line as in a file."""
    resolved, _ = load(services=["api.v1=http://h:1"], environment={})
    assert urls(resolved) == {"api.v1": ("http://h:1",)}


def test_secret_from_a_flag_is_known_as_one() -> None:
    """A secret that `--set` takes from a file is known to come from there, so that it is read again."""
    write("key", "hunter2\n")
    text = f"{MINIMAL}credentials: {{k: {{header: x-k, value: x}}}}\n"
    settings = ["credentials.k.value=${file:key}"]
    resolved, _ = load([write("a.yaml", text)], settings=settings, environment={})
    assert resolved.document.templates == {("credentials", "k", "value"): "${file:key}"}


def test_wrong_item_does_not_move_the_others() -> None:
    """Taking a wrong list item out of the way does not shift where the next one is complained about."""
    routes = "    routes:\n      - match: wrong\n      - match: GET /b\n        auth: nope\n"
    text = f"{MINIMAL}  pay:\n    url: http://h:1\n{routes}"
    marks = [str(problem.mark) for problem in problems_of(write("a.yaml", text))]
    assert marks == ["a.yaml:7:16", "a.yaml:9:15"]


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("defaults: {timeout: 5, auth: nope}\n", ["a.yaml:4:21", "a.yaml:4:30"]),
        ("defaults: {max_in_flight: x, auth: nope}\n", ["a.yaml:4:27", "a.yaml:4:36"]),
        ("  pay: {url: 'http://h:1', timeout: 5, policy: nope}\n", ["a.yaml:4:37", "a.yaml:4:48"]),
        ("defaults: {headers: {set: {x-a: yes, x-b: '{nope}'}}}\n", ["a.yaml:4:33", "a.yaml:4:43"]),
    ],
    ids=["duration", "number", "service", "header"],
)
def test_wrong_value_does_not_hide_its_neighbours(text: str, marks: list[str]) -> None:
    """A wrong value beside an unknown name hides nothing: both are told in the same run."""
    told = [str(problem.mark) for problem in problems_of(write("a.yaml", MINIMAL + text))]
    assert list(dict.fromkeys(told)) == marks


def test_credential_with_a_typo_is_still_declared() -> None:
    """A mistake within a credential does not bring complaints wherever the credential is used."""
    text = f"{MINIMAL}credentials: {{k: {{header: x-k, value: '${{NOPE}}'}}}}\ndefaults: {{auth: k}}\n"
    assert [problem.path for problem in problems_of(write("a.yaml", text))] == ["credentials.k.value"]


@pytest.mark.parametrize("secret", ["12345678", "01234567"])
def test_secret_is_not_shown(secret: str) -> None:
    """A secret that does not fit is not shown in the complaint about it."""
    write("key", secret)
    text = f"{MINIMAL}credentials:\n  k:\n    header: x-k\n    value: ${{file:key}}\n"
    (problem,) = problems_of(write("a.yaml", text))
    assert secret not in problem.message + problem.hint


def test_secret_in_the_wrong_place_is_not_shown() -> None:
    """Nor is one that was put where something else belongs."""
    write("key", "hunter2")
    (problem,) = problems_of(write("a.yaml", f'{MINIMAL}defaults: {{timeout: "${{file:key}}"}}\n'))
    assert "hunter2" not in problem.message + problem.hint


def test_empty_secret() -> None:
    """A secret file that is empty is complained about as such."""
    write("key", "")
    text = f"{MINIMAL}credentials:\n  k:\n    header: x-k\n    value: ${{file:key}}\n"
    (problem,) = problems_of(write("a.yaml", text))
    assert "empty" in problem.message


def test_unusable_secret_is_told_with_the_rest() -> None:
    """A secret that cannot stand in a header does not wait until everything else is right."""
    text = f"{MINIMAL}credentials: {{k: {{header: x-k, value: ' spaced '}}}}\nx: 1\n"
    assert [problem.path for problem in problems_of(write("a.yaml", text))] == ["credentials.k.value", "x"]


def test_secrets_are_not_in_repr() -> None:
    """No repr of a loaded configuration shows a secret."""
    text = f"{MINIMAL}credentials: {{k: {{header: x-k, value: hunter2}}}}\nadmin: {{token: hunter2-hunter2-hunter2}}\n"
    resolved, _ = load([write("a.yaml", text)], environment={})
    for thing in (resolved, resolved.config, resolved.credentials, resolved.config.admin, resolved.document):
        assert "hunter2" not in repr(thing)
        assert "hunter2" not in str(thing)


# ---------------------------------------------------------------- folders


def test_dotfiles_in_a_folder_are_not_read() -> None:
    """Backups of editors and the inside of a mounted ConfigMap are no configuration."""
    write("conf/a.yaml", MINIMAL)
    write("conf/.a.yaml", "not: valid: at: all")
    resolved, problems = load(["conf"], environment={})
    assert urls(resolved) == {"user": ("http://127.0.0.1:3001",)}
    assert problems == []


def test_a_link_that_leads_nowhere_is_an_error() -> None:
    """A file that was meant to be read is never skipped silently."""
    write("conf/a.yaml", MINIMAL)
    Path("conf/b.yaml").symlink_to("gone.yaml")
    (problem,) = problems_of("conf")
    assert "cannot be read" in problem.message
    assert "the link leads nowhere" in problem.hint


def test_a_service_in_two_files_of_a_folder_is_named() -> None:
    """Which definition wins is said, with both places."""
    write("conf/a.yaml", MINIMAL)
    write("conf/b.yaml", "services:\n  user: http://127.0.0.1:3009\n")
    resolved, problems = load(["conf"], environment={})
    assert urls(resolved) == {"user": ("http://127.0.0.1:3009",)}
    assert shown(problems) == ['conf/b.yaml:2:3 "user" is also defined in conf/a.yaml:3:3; what stands here wins']


def test_files_given_one_by_one_are_layers() -> None:
    """An overlay may say something else about a service."""
    write("a.yaml", MINIMAL)
    write("b.yaml", "services:\n  user: { timeout: 2s }\n")
    resolved, problems = load(["a.yaml", "b.yaml"], environment={})
    assert resolved.services[0].policy.timeout == 2
    assert problems == []


def test_a_service_given_twice_on_the_command_line_is_an_error() -> None:
    """One of the two would be lost."""
    flags = ["user=http://127.0.0.1:3001", "user=http://127.0.0.1:3002"]
    (problem,) = problems_of(services=flags)
    assert problem.message == '"user" is given twice'


# ---------------------------------------------------------------- remedies


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("service: b\nservices: { user: { url: ${URL} } }\n", "a reference needs quotes"),
        ("service: b\nservices: { user: { url: 'http://u', routes: [{ match: GET /{id} }] } }\n", "needs quotes"),
        ("service: b\nservices:\n  user:http://127.0.0.1:3001\n  pay: http://127.0.0.1:2\n", "user: http://127"),
        ("service:b\nservices:\n  user: http://127.0.0.1:3001\n", "service: b"),
        ("service: b\nservices:\n  user:http://127.0.0.1:3001\n", "a space belongs behind the colon"),
        ("service: b\nservices: { user:http://127.0.0.1:3001 }\n", "a space belongs behind the colon"),
        ("service: '${EMPTY}'\nservices:\n  user: http://127.0.0.1:3001\n", "that variable is empty"),
        ("service: '${A:-${B}}'\nservices:\n  user: http://127.0.0.1:3001\n", "inside each other"),
    ],
)
def test_a_slip_of_the_pen_comes_with_its_remedy(text: str, remedy: str) -> None:
    """The complaint says what to write instead."""
    write("outrider.yaml", text)
    problems = problems_of(environment={"EMPTY": ""})
    assert any(remedy in f"{problem.message} {problem.hint}" for problem in problems), shown(problems)


def test_keys_that_begin_with_x_hold_anchors() -> None:
    """As in compose files, a top-level x- key is a place for what is used several times."""
    write(
        "outrider.yaml",
        "x-quick: &quick { timeout: 2s }\nservice: b\nservices:\n  user: { url: 'http://u', <<: *quick }\n",
    )
    resolved, problems = load(environment={})
    assert resolved.services[0].policy.timeout == 2
    assert problems == []


def test_wrong_routes_bring_no_further_complaints() -> None:
    """Two routes that cannot be read are two complaints, not three."""
    write(
        "outrider.yaml", "service: b\nservices: { user: { url: 'http://u', routes: [{ match: A }, { match: B }] } }\n"
    )
    assert len(problems_of()) == 2


# ---------------------------------------------------------------- mistakes of newcomers


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("services: {}", "no service is named", "name what the app calls"),
        ("services:\n  - u: http://a:1", "expected a map of keys, got a list", "without a dash"),
        ("services:\n  u: { url: http://a:1, retry: 3 }", "expected a map of keys, got 3", "retry: { max_retries: 2 }"),
        ("services:\n  u: { url: http://a:1, retry: { attempts: 3 } }", "unknown key", 'did you mean "max_retries"?'),
        ("services:\n  u: { url: http://a:1, retry: { on_status: 503 } }", "expected a list, got 503", "write [503]"),
        ("services:\n  u: { url: http://a:1, rate_limit: { rate: 100 } }", "expected a rate like", ""),
        ("services:\n  u: { url: http://a:1, rate_limit: 100 }", "expected a rate like", ""),
        ("defaults: { rate_limit: { rate: 100 } }\nservices:\n  u: http://a:1", "expected a rate like", ""),
        ("services:\n  u: { url: http://a:1, fallback: { status: 200 OK } }", "expected a whole number", ""),
        ('credentials: { k: { header: "x y", value: v } }\nservices: { u: http://a:1 }', "is not a header name", ""),
        ("inbound: { app: http://a:1 }\nservices: { u: http://a:1 }", 'the key "listen" is missing', "0.0.0.0:4103"),
        (
            "inbound: { listen: 127.0.0.1:1, app: http://a:1, protect: [/x],\n"
            '  accept: [{ header: x-api-key, values: ["${NOT_SET}"] }] }\nservices: { u: http://a:1 }',
            "NOT_SET",
            "",
        ),
    ],
)
def test_a_mistake_is_told_once_with_its_remedy(text: str, said: str, hint: str) -> None:
    """One mistake is one complaint, in words of the configuration, and says what to write instead."""
    (only,) = problems_of(write("a.yaml", f"service: booking\n{text}\n"))
    assert said in only.message
    assert hint in only.hint


def test_a_name_that_is_none() -> None:
    """Which characters a name may have is said in words, not as a pattern."""
    (only,) = problems_of(write("a.yaml", "service: a b\nservices: { u: http://a:1 }\n"))
    assert only.message == "expected letters, digits, dots, dashes and underscores, a letter or digit first, got a b"
    assert only.hint == "for example service: booking-service"


def test_no_complaint_shows_a_pattern() -> None:
    """For each key whose text must match a regular expression, a sentence says what it looks like."""
    text = (
        "service: booking\nbrowsers: { hosts: ['a b'] }\n"
        "inbound: { listen: 127.0.0.1:1, app: http://a:1, protect: [/x], identity: ['a b'],\n"
        "  accept: [{ jwt: { jwks: nowhere, audience: x, algorithm: RS256 } }] }\n"
        "services:\n  u: { url: https://a:1, tls: { server_name: 'a b' }, retry: { methods: ['a b'] },\n"
        "    health_check: { path: health } }\n"
    )
    messages = [problem.message for problem in problems_of(write("a.yaml", text))]
    assert len([message for message in messages if message.startswith("expected ")]) >= 5
    assert not [message for message in messages if "pattern" in message or "^" in message]
