"""The models: every key of the configuration, what it means, its default, and what leaving it out means.

These models describe one document as written. What holds in the end, after inheritance, is in `resolve`.
Keys marked NotYet belong to the contract but not to this version: they are refused, never ignored.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from outrider.config import checks
from outrider.config.checks import HeaderName, HeaderValue, Listen, Positive, Status, Switch, Url, Whole
from outrider.config.scalars import Duration, DurationRange, NotYet, RatePerPeriod, Share, Size


class Base(BaseModel):
    """Unknown keys are errors, and models do not change after validation."""

    # What an error says of a value is for `config.load` to decide, which knows the secrets. The texts behind fields
    # are read by `outrider schema` alone: pydantic's `use_attribute_docstrings` parses
    # the source of every model at every start.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Browsers(Base):
    """Pages in a browser on this machine are refused on the ports where the app calls: requests that say they come from
    a page (`Origin`, `Sec-Fetch-Site`), and over the loopback interface those whose `Host` is no name of ours."""

    hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]] = []
    """Further names that the app calls us by, beside addresses, names without a dot, *.localhost, *.test, *.internal,
    the services and their `hosts`."""
    origins: list[Annotated[str, AfterValidator(checks.origin)]] = []
    """Pages that may call, like http://localhost:5173; "*" for any."""


class Admin(Base):
    listen: Listen = ("127.0.0.1", 4101)
    """Where the admin port listens. Loopback only, unless a token is set."""
    token: Annotated[Annotated[str, Field(min_length=16), BeforeValidator(checks.token)] | None, Field(repr=False)] = (
        None
    )
    """Bearer token that every request must carry; none if left out."""
    allow_faults: Annotated[bool, BeforeValidator(checks.switch)] = False
    """Whether `outrider fault` may make services fail on purpose. Not for production."""


class Telemetry(Base):
    listen: Listen = ("0.0.0.0", 4102)
    """Where /metrics, /healthz and /readyz are served."""


class Jwt(Base):
    """Signed tokens (RFC 7519)."""

    alg: Literal["HS256", "RS256", "ES256", "EdDSA"]
    """The only algorithm that is taken, whatever a token says."""
    key: Annotated[str | None, Field(repr=False)] = None
    """The secret (HS256, at least 32 characters) or the public key (PEM)."""
    jwks: Annotated[str, Field(pattern=r"^(https?://|/).+")] | None = None
    """In place of a key: a file or a URL with a set of public keys (RFC 7517) of at most 1 MiB, read again when it
    changes. A token without `kid`, or keys without one, are tried in turn, eight at most."""
    audience: str
    """Whom tokens must be for: "{service}" or a name."""
    issuer: Annotated[list[str], BeforeValidator(checks.names)] = []
    """Whose tokens are taken; left out: anybody's who has the key."""
    leeway: Duration = 30.0
    """How far clocks may differ."""


class Accept(Base):
    """One proof of who calls: a key in a header, a token, or a client certificate."""

    header: HeaderName | None = None
    """The header that carries the key."""
    values: Annotated[list[str], BeforeValidator(checks.names), Field(repr=False)] = []
    """The keys, any of which will do: during a rotation there are two. Empty ones are none."""
    caller: str = "{header:x-service-name}"
    """What a caller with the key is called: text with {header:NAME}."""
    jwt: Jwt | None = None
    """A token in `Authorization: Bearer`; the caller is its issuer."""
    certificate: Annotated[list[str], BeforeValidator(checks.names)] | None = None
    """Names (SAN or CN) of the client certificates that are taken; `*.example` for any below. Needs tls.client_ca."""
    require: list[HeaderName] = []
    """Headers that must be there, too; without one it is 400."""
    forward: Annotated[bool, BeforeValidator(checks.switch)] = False
    """Whether the app gets to see the key or token."""


class Allow(Base):
    caller: str
    """Who: a name, or the beginning of one and `*`."""
    match: Annotated[str, BeforeValidator(checks.rule)]
    """What: METHOD /path, as in a route. It opens what it says and no more: write /internal/** for everything below."""


class InboundRate(Base):
    rate: RatePerPeriod
    """How many calls in which time."""
    burst: Annotated[Whole, Field(ge=1)] | None = None
    """How many at once; left out: the count of the rate."""
    key: Annotated[str, BeforeValidator(checks.inbound_key)] | None = None
    """One allowance per `caller`, or per value of "header:NAME". A header of `identity` counts only for callers that
    have proven themselves; those that say nothing that counts have one allowance per address (IPv6: per /64)."""


class Idempotency(Base):
    """What is remembered of calls with an Idempotency-Key."""

    ttl: Positive = 86400.0
    """For how long."""
    store: Annotated[str, BeforeValidator(checks.store_path)] = "/var/lib/outrider/idempotency.db"
    """An SQLite file, or `redis`: then several guards of one service remember together."""
    max_answer: Size = 256 * 1024
    """How large an answer is kept; of larger ones only that they were given."""
    max_entries: Annotated[Whole, Field(ge=1)] = 100_000
    """How many calls an SQLite file remembers. When it is full, answers to the caller with the most of them go."""
    max_bytes: Size = 256 * 1024 * 1024
    """How many bytes of answers an SQLite file keeps. Beyond that, of the answers to the caller with the most remains
    only that they were given."""
    on_error: Literal["refuse", "pass"] = "refuse"
    """What becomes of keyed calls while the store cannot be used: 503, or as if they had no key."""
    after_crash: Literal["refuse", "repeat", "ask"] = "refuse"
    """What becomes of a call that was handed to the app and whose end nobody heard, because the guard was killed or
    the connection broke: 409; executed again, for apps that know repetitions themselves; or the app is asked."""
    ask: Annotated[str, BeforeValidator(checks.lookup_path)] | None = None
    """A path of the app with {key} in it. GET answers what the call with that key was answered, and 404 if the app has
    neither executed nor begun it."""
    exempt: list[Annotated[str, BeforeValidator(checks.rule)]] = []
    """METHOD /path of operations whose answers must not be stored."""


class Inbound(Base):
    """The guard in front of the app."""

    listen: Listen
    """Where other services call."""
    app: Annotated[str, BeforeValidator(checks.app_url)]
    """Where the app listens."""
    host: Literal["caller", "app"] = "caller"
    """The `Host` that the app gets: the caller's, as if it were called directly, or that of `app`. By it apps make
    absolute URLs, such as those of redirects."""
    forwarded: Literal["add", "remove", "pass"] = "add"
    """What becomes of `X-Forwarded-*`, `Forwarded`, `X-Real-IP` and the like. `add`: taken off unless the caller has
    proven itself, and X-Forwarded-For, -Host and -Proto are written for the app; `remove`: only taken off; `pass`:
    passed on as they come, for a guard behind a proxy that sets them and takes off what strangers send."""
    tls: ServerTls | None = None
    """Certificate of this listener, and whose callers' certificates to ask for."""
    protect: list[
        Annotated[str, AfterValidator(checks.protected), WithJsonSchema({"type": "string", "pattern": "^/"})]
    ] = ["/**"]
    """Paths that only proven callers reach, each with everything below it and however it is spelled; all, if left out.
    {name} or * stands for one segment, ** for any number. Other paths pass."""
    accept: list[Accept] = []
    """What proves who calls; any one will do. Nothing: everybody is refused."""
    allow: list[Allow] | None = None
    """Who may do what; left out: any proven caller may do anything."""
    identity: list[Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]] = [
        "x-service-name",
        "x-service-id",
        "x-user-*",
        "x-tenant-*",
    ]
    """Headers that say who somebody is: taken off unless the caller has proven itself, and given back to the app's own
    calls on its behalf. All but x-service-name and x-service-id tell the users of a caller apart, whose keyed calls are
    different ones."""
    rate_limit: Annotated[InboundRate, BeforeValidator(checks.rate_limit)] | None = None
    """At most so many calls in a time."""
    body_bytes: Size | Switch | None = None
    """Largest request body. Default: `limits.body_bytes`, and where that is left out, too, 10MiB for callers that have
    not proven themselves, and no limit for others. `false`: no limit for any caller."""
    max_in_flight: Annotated[
        Annotated[Whole, Field(ge=1)] | Literal["adaptive"] | Switch | None, BeforeValidator(checks.limit)
    ] = None
    """At most so many calls at a time; `adaptive` finds out how many."""
    queue: Queue | None = None
    """Let calls beyond `max_in_flight` wait."""
    health_check: HealthCheck | None = None
    """Ask the app whether it is well; while it is not, calls are refused here."""
    idempotency: Idempotency | Switch | None = None
    """Run a POST or PATCH with an Idempotency-Key once, and answer repetitions from memory."""


class MintedJwt(Base):
    """A token of our own, signed anew for every target and kept for most of its life."""

    alg: Literal["HS256", "RS256", "ES256", "EdDSA"]
    """How it is signed."""
    key: str = Field(min_length=1, repr=False)
    """The secret (HS256), or the private key (PEM)."""
    issuer: str = "{service}"
    """Who signs."""
    audience: str = "{target}"
    """For whom: text with {target}, the name of the service that is called."""
    ttl: Positive = 300.0
    """How long it is good."""
    kid: str | None = None
    """The name of the key, for receivers that know several."""
    claims: dict[str, str | int | bool] = {}
    """Further claims."""


class OAuth2(Base):
    """A token from an issuer (client credentials), fetched ahead of its expiry."""

    token_url: Annotated[str, BeforeValidator(checks.issuer_url)]
    """Where tokens are given out; it may have a query."""
    client_id: str = Field(min_length=1)
    """Who we are there."""
    client_secret: str = Field(min_length=1, repr=False)
    """And our secret there."""
    scope: str | None = None
    """What is asked for."""
    audience: str | None = None
    """For whom, where the issuer wants to know."""


class Credential(Base):
    """One secret in one header: a `value`, what a `command` prints, a minted `jwt` or an `oauth2` token."""

    header: HeaderName | None = None
    """The header that carries the secret. Default for jwt and oauth2: Authorization."""
    value: Annotated[str | None, Field(min_length=1, repr=False)] = None
    """The secret: usually ${file:/run/secrets/...} or ${VAR}. A file, a regular one of at most 64 KiB, is read again
    when it changes."""
    overlap: Duration = 300.0
    """How long the value before the present one is tried, once, where the present one is answered with 401."""
    command: Annotated[list[str], Field(min_length=1)] | None = None
    """A program and its arguments; what it prints is the secret. Until it has done so for the first time, calls that
    need it are 503; a 401 has it run again."""
    every: Positive = 300.0
    """How often the command is run."""
    jwt: MintedJwt | None = None
    """A token that we sign ourselves."""
    oauth2: OAuth2 | None = None
    """A token that an issuer gives us. Until the first one is there, calls that need it are 503; a 401 has it fetched
    again."""


class ClientTls(Base):
    """Of https targets. Files are read again when they change; the certificate is always verified."""

    ca: str | None = None
    """File with the certificates of the authorities to trust (PEM). Default: those of the system."""
    cert: str | None = None
    """File with our own certificate and its chain (PEM), for targets that ask for one."""
    key: str | None = None
    """File with its private key (PEM, without a passphrase). Default: the file of `cert`."""
    server_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$")] | None = None
    """The name to ask for (SNI) and to find in the target's certificate. Default: the host of the URL."""


class ServerTls(Base):
    """Of a listener. Files are read again when they change."""

    cert: str
    """File with the certificate and its chain (PEM)."""
    key: str | None = None
    """File with its private key (PEM, without a passphrase). Default: the file of `cert`."""
    client_ca: str | None = None
    """File with the authorities whose certificates callers must show (PEM). Default: none is asked for. Where
    `inbound.accept` takes certificates and something else, they may do without."""


class Headers(Base):
    set: dict[HeaderName, HeaderValue] = {}
    """Headers to set on every attempt. Variables: {service} {target} {instance} {request_id} {correlation_id}
    {attempt} {header:NAME}."""
    remove: list[HeaderName] = []
    """Headers of the app to take off."""


class Correlation(Base):
    header: HeaderName = "x-correlation-id"
    """The header that carries the correlation id; what the app sends is passed on."""
    generate: Literal["uuid7", "uuid4"] = "uuid7"
    """What an id looks like that is created because the app sent none."""


class Retry(Base):
    max_retries: Annotated[Whole, Field(ge=0, le=30)] = 3
    """Attempts after the first."""
    methods: list[Annotated[str, Field(pattern=r"^[!#$%&'+.^_`~0-9A-Za-z-]+$"), AfterValidator(checks.method)]] = [
        "GET",
        "HEAD",
        "OPTIONS",
        "PUT",
        "DELETE",
    ]
    """Methods that may be repeated although the target may have acted. Others are repeated only with an
    Idempotency-Key, or when nothing was sent."""
    on_status: list[Status] = [500, 502, 503, 504]
    """Answers to retry on. 429 is retried when it carries Retry-After, whatever stands here."""
    on_errors: list[Literal["connect", "reset", "timeout"]] = ["connect", "reset", "timeout"]
    """Errors to retry on."""
    backoff: DurationRange = (0.025, 1.0)
    """First pause and cap, doubling, with full jitter."""
    budget: Share = 0.2
    """Retries may add at most this share of load, plus 3 per second."""
    idempotency_key: Literal["generate"] | None = None
    """`generate`: give calls an Idempotency-Key that have none, the same on every try. That makes a POST repeatable."""


class Ejection(Base):
    """When one of several endpoints is set aside. Never the last one: what then fails is the circuit breaker's."""

    consecutive_failures: Annotated[Whole, Field(ge=0)] = 5
    """Failures in a row; 0 switches this rule off."""
    failure_rate: Share = 0.3
    """By how much its share of failures may exceed that of the others; 0% switches this rule off."""
    slow_factor: Annotated[float, Field(ge=0)] = 10.0
    """How many times as slow as the others it may be; 0 switches this rule off."""
    slow_call: Positive = 0.25
    """Answers faster than this are never too slow."""
    base: Positive = 0.2
    """For how long at first; doubling with every time in a row."""
    max: Positive = 30.0
    """For how long at most."""


class HealthCheck(Base):
    """A GET to every endpoint, again and again. Anything but 2xx is unhealthy, redirects included."""

    path: Annotated[str, Field(pattern=r"^/[^\s#]*$")] = "/health"
    """The path, which is put behind a base path of the URL."""
    every: Positive = 5.0
    """Between two checks."""
    timeout: Positive = 1.0
    """How long an answer may take, body included."""
    unhealthy_after: Annotated[Whole, Field(ge=1)] = 3
    """Failures in a row after which an endpoint gets no calls while others are healthy."""
    healthy_after: Annotated[Whole, Field(ge=1)] = 1
    """Successes in a row after which it gets calls again."""


class Hedge(Base):
    """Another attempt elsewhere, when an answer is late. For repeatable calls only, from the budget of retries."""

    after: Annotated[
        float | str | None,
        BeforeValidator(checks.after),
        WithJsonSchema({"type": "string", "examples": ["p95", "50ms"]}),
    ] = None
    """When an answer is late: a duration, or a percentile of this route's own answers, such as p95."""
    max: Annotated[Whole, Field(ge=1, le=5)] = 1
    """How many more attempts at the same time."""


class Queue(Base):
    """Where calls wait that exceed `max_in_flight`, critical ones first."""

    size: Annotated[Whole, Field(ge=1)] = 64
    """How many may wait."""
    wait: Positive = 1.0
    """How long, at most; never longer than their own deadline allows."""


class Throttle(Base):
    """Refuse here what the service would refuse there ("client-side throttling", Site Reliability Engineering)."""

    ratio: Annotated[float, Field(ge=1)] = 2.0
    """How many times what the service takes may be sent to it."""
    window: Positive = 30.0
    """How far back that is looked at."""


class CircuitBreaker(Base):
    consecutive_failures: Annotated[Whole, Field(ge=0)] = 5
    """Failures in a row that open the circuit; 0 switches this rule off."""
    failure_rate: Share = 0.5
    """Share of failed attempts within the window that opens it; 0% switches this rule off."""
    slow_rate: Share = 0.8
    """Share of slow attempts within the window that opens it; 0% switches this rule off."""
    slow_call: Positive | None = None
    """From when an answer is slow; left out: 80 % of attempt_timeout."""
    min_requests: Annotated[Whole, Field(ge=1)] = 20
    """Attempts within the window before a rate says anything."""
    window: Positive = 10.0
    """How far back rates look."""
    open_for: DurationRange = (0.02, 0.25)
    """How long the circuit stays open: at first, and at most; in between, a twentieth of the time it has failed."""
    ramp: Duration = 0.0
    """Within this time after closing, let a growing share of attempts through; 0s: all at once."""
    wait: Duration = 0.0
    """How long a call may wait for the circuit to close before it is refused; 0s: not at all."""
    probes: Annotated[Whole, Field(ge=1)] = 1
    """Attempts let through at a time while half-open, and successes needed to close."""


class RateLimit(Base):
    rate: RatePerPeriod | None = None
    """How many calls in which time. May be inherited."""
    burst: Annotated[Whole, Field(ge=1)] | None = None
    """How many at once; left out: the count of the rate."""
    key: Annotated[str, BeforeValidator(checks.key)] | None = None
    """One allowance per value of this header: "header:x-user-id"."""
    store: Annotated[str | None, BeforeValidator(checks.store_later)] = None


class LastGood(Base):
    """Earlier good answers to the same GET of the same user, kept in memory."""

    max_age: Positive = 600.0
    """How old an answer may be that stands in."""
    max_bytes: Size = 4 * 1024 * 1024
    """How much is kept in all; the longest unused go first."""
    max_answer: Size = 256 * 1024
    """How large one answer may be."""


class Fallback(Base):
    """What stands in for a service that fails. Of several in one map: `service`, then `last_good`, then `status`."""

    service: str | None = None
    """Another service of this configuration that gets the same call."""
    last_good: LastGood | None = None
    """An earlier good answer to the same call."""
    status: Annotated[Whole, Field(ge=200, le=599)] | None = None
    """Status of a prepared answer. Default 200, where neither `service` nor `last_good` is given."""
    json_: Any = Field(None, alias="json")
    """Its body, sent as JSON."""
    headers: dict[HeaderName, HeaderValue] = {}
    """Further headers."""


def _no_body(fallback: Fallback) -> Fallback:
    if fallback.status in (204, 304) and fallback.json_ is not None:
        raise checks.fail("an answer with status {status} has no body; leave json out", status=fallback.status)
    return fallback


def _no_bodies(given: Fallback | list[Fallback]) -> Fallback | list[Fallback]:
    for fallback in given if isinstance(given, list) else [given]:
        _no_body(fallback)
    return given


def _fallback(value: Any) -> Any:
    if isinstance(value, list):
        if not value:
            raise checks.fail("the list of fallbacks is empty", "give at least one, or write false")
        return [{"last_good": {}} if one == "last-good" else one for one in value]
    if isinstance(value, str):
        if value != "last-good":
            raise checks.fail("expected last-good, a map, or a list of them, got {got}", got=value or "nothing")
        return [{"last_good": {}}]
    return value


class PolicyFields(Base):
    """What a service, a route, a policy bundle and `defaults` have in common. `false` switches a part off."""

    timeout: Positive | Switch | None = None
    """Until the head of the answer is here, all attempts and pauses included. Default 10s. The body may then take as
    long as it moves: see body_idle_timeout and total_timeout. While the target is still taking a large request, the
    time does not run out."""
    total_timeout: Positive | Switch | None = None
    """The whole call, to the last byte of the answer. Default: no limit but the deadlines that callers send."""
    attempt_timeout: Positive | None = None
    """One attempt, from the last byte of the request to the head of its answer. Default: half of `timeout` where
    another attempt may follow, else all the time that is left."""
    body_idle_timeout: Positive | None = None
    """How long a body may stand still, either way. Default: limits.body_idle_timeout."""
    connect_timeout: Positive | None = None
    """Connecting. Default 1s."""
    idle_timeout: Duration | None = None
    """How long an unused connection to a target is kept. Default 4s, as Node closes after 5s."""
    auth: Annotated[list[str], BeforeValidator(checks.names)] | Switch | None = None
    """Credentials by name."""
    headers: Headers | Switch | None = None
    """Headers to set or to remove."""
    correlation: Correlation | None = None
    """The correlation id."""
    critical: Annotated[bool | None, BeforeValidator(checks.switch)] = None
    """Whether the app needs this service. Where it is overloaded, calls that are not critical are shed first."""
    retry: Retry | Switch | None = None
    """What is tried again, and how often."""
    circuit_breaker: CircuitBreaker | Switch | None = None
    """When to stop calling."""
    max_in_flight: Annotated[
        Annotated[Whole, Field(ge=1)] | Literal["adaptive"] | Switch | None, BeforeValidator(checks.limit)
    ] = None
    """At most so many calls at a time; `adaptive` finds out how many by how fast answers come."""
    queue: Queue | Switch | None = None
    """Let calls beyond `max_in_flight` wait instead of refusing them at once."""
    throttle: Throttle | Switch | None = None
    """Refuse a share of calls here while the service refuses or fails many."""
    rate_limit: Annotated[RateLimit, BeforeValidator(checks.rate_limit)] | Switch | None = None
    """At most so many calls in a time."""
    fallback: (
        Annotated[Fallback | list[Fallback], BeforeValidator(_fallback), AfterValidator(_no_bodies)] | Switch | None
    ) = None
    """What stands in when the service fails: a prepared answer, last-good, another service, or a list of them."""
    balance: Annotated[str | None, BeforeValidator(checks.balance)] = None
    """How to choose among endpoints: least-latency (default), least-requests, round-robin or hash:header:NAME."""
    upgrade: Annotated[bool | None, BeforeValidator(checks.switch)] = None
    """Whether WebSocket and other protocols asked for with `Upgrade` are tunnelled. Default true; never h2c."""
    allow_connect: Annotated[bool | None, BeforeValidator(checks.switch)] = None
    """Whether CONNECT to a host of this service opens a tunnel to one of its endpoints. Default false."""
    tls: ClientTls | Switch | None = None
    """How https targets are verified, and what we show them."""
    delivery: Annotated[str | None, checks.only(("sync", None), "delivery")] = None
    health_check: HealthCheck | Switch | None = None
    """Ask every endpoint whether it is well."""
    ejection: Ejection | Switch | None = None
    """When one of several endpoints is set aside."""
    hedge: Hedge | Switch | None = None
    """Ask a second endpoint when the first one is late."""
    contract: NotYet = None
    order_by: NotYet = None


class Policy(PolicyFields):
    extends: Annotated[list[str], BeforeValidator(checks.names)] = []
    """Other bundles to start from; later ones win."""


class Route(PolicyFields):
    match: Annotated[str, BeforeValidator(checks.match)]
    """METHOD /path with {name} or * for a segment and ** for any number of them; the method may be *, or several with |
    between them. First match wins."""


class Target(Base):
    url: Url
    """Where it is. dns+http://name:port makes every address of a name an endpoint, dnssrv+http://name every SRV record,
    file+/path every entry of a YAML or JSON list (at most 256 KiB, no aliases), which is read again when it changes:
    replace it by renaming another file."""
    weight: Annotated[float, Field(gt=0, le=1000), BeforeValidator(checks.no_switch)] = 1.0
    """Its share of calls, beside the others'."""

    @property
    def is_source(self) -> bool:
        """Whether endpoints are looked up there, instead of this being one."""
        return "+" in self.url.partition(":")[0]


class Service(PolicyFields):
    url: Annotated[list[Annotated[Target, BeforeValidator(checks.target)]], BeforeValidator(checks.urls)]
    """Where the service is: a URL, a map with url and weight, or a list of them."""
    env: NotYet = None
    port: Annotated[Whole, Field(ge=0, le=65535)] | None = None
    """Also listen on 127.0.0.1 at this port, for this service alone."""
    hosts: list[str] = []
    """Further host names for this service."""
    policy: Annotated[list[str], BeforeValidator(checks.names)] = []
    """Bundles that hold for this service; later ones win."""
    routes: list[Route] = []
    """Rules for some of its operations; first match wins."""


class Limits(Base):
    header_bytes: Size = 64 * 1024
    """Largest head of a request or of an answer."""
    headers: Annotated[Whole, Field(ge=1)] = 100
    """Most fields in a head."""
    body_bytes: Size | Switch | None = None
    """Largest request body. Default: no limit, because bodies are passed on as they come."""
    replay_bytes: Size = 64 * 1024
    """How much of a request body is kept for another attempt."""
    downstream_connections: Annotated[Whole, Field(ge=1)] = 1024
    """Most connections from the app; as many again may come from callers, where there is `inbound`."""
    downstream_requests: Annotated[Whole, Field(ge=1)] = 1_000_000
    """Most requests on one connection; the answer to the last one says that it closes."""
    downstream_idle_timeout: Positive = 3600.0
    """How long a connection from the app may be silent between requests."""
    header_timeout: Positive = 10.0
    """How long a request head may take, and how long a new connection may be silent."""
    body_idle_timeout: Positive = 30.0
    """How long a body may stand still, either way. Services and routes may have their own."""
    tunnel_idle_timeout: Positive = 600.0
    """How long nothing may move, either way, in a tunnel (WebSocket, CONNECT)."""


class Log(Base):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged of Outrider itself."""
    format: Literal["json"] = "json"
    access: Annotated[str, BeforeValidator(checks.access)] = "errors"
    """Which calls are logged: none, errors (failed or retried), all, or errors and a share like 1%."""
    query: bool = False
    """Whether query strings are logged."""
    repeats: Annotated[Whole, Field(ge=1)] | Switch = 10
    """How many events of one kind (failed calls of one service with one reason, changes of a circuit) are logged within
    ten seconds; the others are counted in one line. `false`: every one. With `access: all`, calls are never counted
    together."""

    @property
    def most_alike(self) -> int:
        """`repeats` as a number."""
        return self.repeats if self.repeats is not False else sys.maxsize


class Observability(Base):
    log: Log = Log()
    tracing: NotYet = None
    redact: list[str] = ["authorization", "x-api-key", "x-internal-auth", "cookie"]
    """Header names whose values are never shown."""


class Dns(Base):
    """How names of dns+ and dnssrv+ are resolved."""

    servers: list[Annotated[str, AfterValidator(checks.dns_server)]] = []
    """Addresses of DNS servers, with `:PORT` where it is not 53. Default: those of the system."""
    timeout: Positive = 2.0
    """How long an answer may take."""


class Redis(Base):
    """Where what several sidecars share is kept. Used only by what asks for it."""

    url: Annotated[str, BeforeValidator(checks.redis_url), Field(repr=False)]
    """redis://HOST:PORT/DB, rediss://... (TLS) or unix:///PATH."""
    timeout: Positive = 1.0
    """How long an answer may take."""


class Shutdown(Base):
    drain: Duration = 25.0
    """How long live calls may take after SIGTERM."""


class Config(Base):
    """One configuration document."""

    version: Literal[1] = 1
    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Who we are: {service}, x-service-name."""
    instance: Annotated[str, Field(min_length=1), BeforeValidator(checks.header_value)] | None = None
    """Which of us: {instance}, x-service-id. Default: the host name."""
    listen: Listen = ("127.0.0.1", 4100)
    """Where the app calls."""
    browsers: Annotated[
        Browsers | Annotated[Literal["pass"], BeforeValidator(checks.passes)], BeforeValidator(checks.browsers)
    ] = Browsers()
    """Which pages in a browser may call; `pass` where the app passes the headers of browsers on."""
    admin: Admin = Admin()
    telemetry: Telemetry = Telemetry()
    workers: Annotated[Whole, Field(ge=1, le=64)] = 1
    """Processes that share the ports, for those who outgrow a core. Rates and concurrency limits are divided among
    them; breakers and budgets are each one's own."""
    inbound: Inbound | None = None
    """The guard in front of the app."""
    credentials: dict[str, Credential] = {}
    """Declared once, used by name under `auth`."""
    defaults: PolicyFields = PolicyFields()
    """What holds for every service unless it says otherwise."""
    policies: dict[str, Policy] = {}
    """Named bundles of the same fields."""
    services: dict[
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")], Annotated[Service, BeforeValidator(checks.service)]
    ] = Field(min_length=1)
    """The services the app may call, by the name it calls them."""
    dns: Dns = Dns()
    redis: Redis | None = None
    outbox: NotYet = None
    limits: Limits = Limits()
    observability: Observability = Observability()
    shutdown: Shutdown = Shutdown()
