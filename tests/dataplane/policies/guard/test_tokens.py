"""Tokens: what proves who calls, and every known way to make one up."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from functools import cache
from time import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.dataplane.policies.guard import tokens
from outrider.dataplane.policies.guard.tokens import ALGORITHMS, TokenProof
from tests.fakes import Clock, make_call

SECRET = b"s" * 64
OTHER_SECRET = b"o" * 64
AUDIENCE = "user"


@cache
def private(alg: str, number: int = 0) -> Any:
    """A key to sign with; another one for every number."""
    if alg == "HS256":
        return (SECRET, OTHER_SECRET)[number]
    if alg == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1()) if alg == "ES256" else ed25519.Ed25519PrivateKey.generate()


def public(alg: str, number: int = 0) -> Any:
    made = private(alg, number)
    return made if alg == "HS256" else made.public_key()


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says; None takes a claim away."""
    now = int(time())
    made = {"iss": "orders", "aud": AUDIENCE, "exp": now + 300, "iat": now, **changes}
    return {name: value for name, value in made.items() if value is not None}


def signed(said: dict[str, Any] | None = None, alg: str = "HS256", number: int = 0, **headers: Any) -> bytes:
    made: str = jwt.encode(claims() if said is None else said, private(alg, number), algorithm=alg, headers=headers)
    return made.encode()


def encoded(part: Any) -> bytes:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def handmade(header: Any, said: Any, secret: bytes = SECRET) -> bytes:
    """A token that no library would make, rightly signed with HMAC."""
    body = encoded(header) + b"." + encoded(said)
    return body + b"." + encoded(hmac.new(secret, body, hashlib.sha256).digest())


def make_proof(alg: str = "HS256", keys: dict[str | None, Any] | None = None, **settings: Any) -> TokenProof:
    return TokenProof(alg, list(({None: public(alg)} if keys is None else keys).items()), audience=AUDIENCE, **settings)


def prove(proof: TokenProof, token: bytes, scheme: bytes = b"Bearer ") -> tuple[str, str]:
    return proof.prove(make_call(headers={b"authorization": scheme + token}))


# ---------------------------------------------------------------- good ones


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_good_token(alg: str) -> None:
    """Rightly signed, for us, not expired: the caller is who issued it."""
    assert prove(make_proof(alg), signed(alg=alg)) == ("orders", "")


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_another_key(alg: str) -> None:
    """A token that somebody else has signed is none."""
    assert prove(make_proof(alg), signed(alg=alg, number=1)) == ("", "token_signature")


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer   "])
def test_the_scheme_has_no_case(scheme: bytes) -> None:
    """RFC 9110 section 11.1."""
    assert prove(make_proof(), signed(), scheme) == ("orders", "")


@pytest.mark.parametrize("scheme", [b"", b"Basic ", b"Bearer", b"Bearer\t", b"JWT ", b" Bearer ", b"Bearer: "])
def test_another_scheme(scheme: bytes) -> None:
    """Whatever is no bearer token has not been tried as one."""
    assert prove(make_proof(), signed(), scheme) == ("", "no_token")


def test_no_token() -> None:
    """Without the header, or with nothing in it."""
    assert make_proof().prove(make_call()) == ("", "no_token")
    assert make_proof().prove(make_call(headers={b"authorization": b""})) == ("", "no_token")


def test_two_tokens() -> None:
    """Nobody can tell which one the app would believe."""
    call = make_call(headers={b"authorization": b"Bearer " + signed()})
    call.fields.append((b"authorization", b"Authorization", b"Bearer x"))
    assert make_proof().prove(call) == ("", "token_twice")


def test_one_of_several_audiences() -> None:
    """A token may be for others, too."""
    assert prove(make_proof(), signed(claims(aud=["x", AUDIENCE]))) == ("orders", "")


def test_known_issuers() -> None:
    """Where they are listed, nobody else is taken."""
    proof = make_proof(issuers=["orders", "stock"])
    assert prove(proof, signed(claims(iss="stock"))) == ("stock", "")
    assert prove(proof, signed(claims(iss="billing"))) == ("", "token_issuer")


# ---------------------------------------------------------------- algorithms


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 0, [], {}])
def test_no_algorithm(alg: Any) -> None:
    """An unsigned token is none, however it says so."""
    for signature in (b"", encoded(b"x" * 32)):
        token = encoded({"alg": alg, "typ": "JWT"}) + b"." + encoded(claims()) + b"." + signature
        for expected in ALGORITHMS:
            caller, reason = prove(make_proof(expected), token)
            assert caller == ""
            assert reason in ("token_algorithm", "token_malformed")


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_the_public_key_is_no_secret(alg: str) -> None:
    """Everybody has the public key, so what is HMAC-signed with it proves nothing (RFC 8725 section 2.1)."""
    pem = public(alg).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip()):
        for claimed in ("HS256", alg):
            assert prove(make_proof(alg), handmade({"alg": claimed, "typ": "JWT"}, claims(), secret))[0] == ""


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("expected", ALGORITHMS)
def test_the_algorithm_is_ours_to_choose(alg: str, expected: str) -> None:
    """A token of any other algorithm is refused before anything is computed."""
    if alg != expected:
        assert prove(make_proof(expected), signed(alg=alg)) == ("", "token_algorithm")


def test_a_stronger_algorithm_is_another_one() -> None:
    """The same secret, but not what was agreed."""
    token = jwt.encode(claims(), SECRET, algorithm="HS512").encode()
    assert prove(make_proof(), token) == ("", "token_algorithm")


@pytest.mark.parametrize(
    "header", [{"jwk": {"kty": "oct", "k": "eHh4"}}, {"jku": "http://evil/keys"}, {"x5u": "http://evil/x"}], ids=str
)
def test_a_token_does_not_bring_its_key(header: dict[str, Any]) -> None:
    """What it says about keys is not even looked at."""
    token = handmade({"alg": "HS256", "typ": "JWT", **header}, claims(), b"xxx")
    assert prove(make_proof(), token) == ("", "token_signature")


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": int(time()) - 3600}, "token_expired"),
        ({"exp": 0}, "token_expired"),
        ({"exp": -1}, "token_expired"),
        ({"exp": None}, "token_incomplete"),
        ({"exp": "soon"}, "token_malformed"),
        ({"nbf": int(time()) + 3600}, "token_from_the_future"),
        ({"iat": int(time()) + 3600}, "token_from_the_future"),
        ({"nbf": "later"}, "token_malformed"),
        ({"aud": None}, "token_incomplete"),
        ({"aud": "stock"}, "token_audience"),
        ({"aud": ["stock"]}, "token_audience"),
        ({"aud": "user2"}, "token_audience"),
        ({"aud": "use"}, "token_audience"),
        ({"aud": []}, "token_incomplete"),
        ({"aud": {"user": 1}}, "token_audience"),
        ({"aud": 5}, "token_audience"),
        ({"iss": None}, "token_incomplete"),
        ({"iss": ""}, "token_issuer"),
    ],
    ids=[f"claim{number}" for number in range(18)],
)
def test_claims_that_do_not_hold(changes: dict[str, Any], reason: str) -> None:
    """Each of them alone is enough."""
    assert prove(make_proof(), signed(claims(**changes))) == ("", reason)


@pytest.mark.parametrize("issuer", [5, ["orders"], {"orders": 1}, True, 0.5], ids=str)
def test_an_issuer_is_a_name(issuer: Any) -> None:
    """Anything else is nobody, whatever a library makes of it."""
    caller, reason = prove(make_proof(), handmade({"alg": "HS256"}, claims(iss=issuer)))
    assert caller == ""
    assert reason in ("token_issuer", "token_malformed")


@pytest.mark.parametrize("issuer", ["a\r\nx-user-id: 1", "a\x00", "a\tb", "\x1b[2J", "a\nb"], ids=repr)
def test_an_issuer_is_one_line(issuer: str) -> None:
    """It will stand in a header and in the log."""
    assert prove(make_proof(), signed(claims(iss=issuer))) == ("", "token_issuer")


def test_clocks_may_differ_a_little() -> None:
    """Within the leeway both ways, and no further."""
    now = int(time())
    proof = make_proof(leeway=30.0)
    assert prove(proof, signed(claims(exp=now - 20))) == ("orders", "")
    assert prove(proof, signed(claims(nbf=now + 20, iat=now + 20))) == ("orders", "")
    assert prove(proof, signed(claims(exp=now - 40))) == ("", "token_expired")
    assert prove(proof, signed(claims(nbf=now + 40))) == ("", "token_from_the_future")
    strict = make_proof(leeway=0.0)
    assert prove(strict, signed(claims(exp=now - 2))) == ("", "token_expired")


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value",
    [1e400, -1e400, 10**400, float("nan"), True, None, [], {}],
    ids=["infinite", "minus infinite", "huge", "not a number", "true", "null", "list", "map"],
)
def test_times_that_are_none(name: str, value: Any) -> None:
    """JSON has numbers that are no time; a token with them may be refused, but must not break the guard."""
    said = {**claims(), name: value}
    caller, reason = prove(make_proof(), handmade({"alg": "HS256", "typ": "JWT"}, said))
    if value is not None:  # a claim that says nothing may be there
        assert caller == ""
    assert bool(caller) != bool(reason)


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value", [str(int(time()) + 3600), "1e12", "0x1", "Infinity"], ids=["soon", "late", "hex", "inf"]
)
def test_a_time_is_a_number(name: str, value: str) -> None:
    """Text that looks like a time is none (RFC 7519 section 2), whatever a library makes of it."""
    past = str(int(time()) - 60) if name != "exp" and value.isdigit() else value
    assert prove(make_proof(), handmade({"alg": "HS256"}, {**claims(), name: past})) == ("", "token_malformed")


@pytest.mark.parametrize("part", ["header", "claims"])
def test_a_member_comes_once(part: str) -> None:
    """The app, or another proxy, may take the other one of two."""
    header = b'{"alg":"HS256","alg":"HS256"}' if part == "header" else b'{"alg":"HS256"}'
    said = json.dumps(claims()).encode()
    if part == "claims":
        said = said[:-1] + b',"iss":"admin"}'
    assert prove(make_proof(), handmade(header, said)) == ("", "token_malformed")


# ---------------------------------------------------------------- what is no token


@pytest.mark.parametrize(
    "token",
    [
        b"x",
        b"a.b",
        b"a.b.c",
        b"a.b.c.d",
        b"..",
        b"a.b.c.d.e",
        b"\xff\xfe.\xff.\xff",
        b"=.=.=",
        encoded(b"[]") + b"." + encoded(claims()) + b".x",
        encoded(b"null") + b"." + encoded(claims()) + b".x",
        encoded(b"{") + b"." + encoded(claims()) + b".x",
        encoded(b"[" * 5000) + b"..",
        encoded(b'{"a":' * 1000) + b"..",
        handmade({"alg": "HS256"}, b"[]"),
        handmade({"alg": "HS256"}, b"null"),
        handmade({"alg": "HS256"}, b"not json"),
        handmade({"alg": "HS256"}, b"\xff"),
        handmade({"alg": "HS256", "kid": 5}, claims()),
        handmade({"alg": "HS256", "kid": []}, claims()),
        handmade({"alg": "HS256", "crit": ["x"], "x": 1}, claims()),
        handmade({"alg": "HS256", "b64": False, "crit": ["b64"]}, claims()),
    ],
    ids=lambda token: repr(token[:24]),
)
def test_malformed(token: bytes) -> None:
    """What cannot be read, or may not be ignored (RFC 7515 section 4.1.11), is refused."""
    assert prove(make_proof(), token) == ("", "token_malformed")


def test_nothing_behind_the_scheme() -> None:
    """An empty token is a malformed one."""
    assert prove(make_proof(), b"") == ("", "token_malformed")


def test_too_large() -> None:
    """Nobody has us compute on megabytes; the largest that is read may still be good."""
    proof = make_proof()
    assert prove(proof, b"x" * 8193) == ("", "token_too_large")
    token = signed(claims(pad="x" * 5500))
    assert 7000 < len(token) <= 8192
    assert prove(proof, token) == ("orders", "")


def test_a_changed_letter() -> None:
    """Anywhere in it."""
    proof = make_proof()
    token = signed()
    for at in range(0, len(token) - 1, 3):
        changed = token[:at] + (b"A" if token[at : at + 1] != b"A" else b"B") + token[at + 1 :]
        assert prove(proof, changed)[0] == ""


# ---------------------------------------------------------------- keys


def test_the_key_of_a_name() -> None:
    """`kid` says which of several it is; each proves only what was signed with it."""
    proof = make_proof(keys={"one": SECRET, "two": OTHER_SECRET})
    assert prove(proof, signed(kid="one")) == ("orders", "")
    assert prove(proof, signed(kid="two", number=1)) == ("orders", "")
    assert prove(proof, signed(kid="two")) == ("", "token_signature")


@pytest.mark.parametrize("kid", [None, "named"])
def test_keys_without_name_are_tried_in_turn(kid: str | None) -> None:
    """Of several keys that have no name, whichever signed the token proves it, at whatever place it stands."""
    proof = TokenProof("HS256", [(None, OTHER_SECRET), (None, SECRET), (None, b"x" * 40)], audience=AUDIENCE)
    headers = {"kid": kid} if kid else {}
    assert prove(proof, signed(**headers)) == ("orders", "")
    assert prove(proof, signed(number=1, **headers)) == ("orders", "")


def test_a_token_without_name_may_be_of_any_key() -> None:
    """`kid` is a hint (RFC 7515 section 4.1.4), not a duty."""
    proof = make_proof(keys={"one": OTHER_SECRET, "two": SECRET})
    assert prove(proof, signed()) == ("orders", "")


def test_two_keys_of_one_name() -> None:
    """Both are tried."""
    proof = TokenProof("HS256", [("one", OTHER_SECRET), ("one", SECRET)], audience=AUDIENCE)
    assert prove(proof, signed(kid="one")) == ("orders", "")


def test_the_number_of_keys_tried_is_bounded(verified: list[bytes]) -> None:
    """A stranger's token costs at most eight signatures, however many keys there are."""
    keys = [(None, b"%d" % number * 32) for number in range(100)]
    assert prove(TokenProof("HS256", keys, audience=AUDIENCE), signed()) == ("", "token_signature")
    assert len(verified) == 8


def test_an_unknown_key_is_heard_of() -> None:
    """Somebody has new keys: whoever looks after ours is told, once for each such token."""
    proof = make_proof(keys={"one": SECRET})
    heard: list[None] = []
    proof.unknown_key = lambda: heard.append(None)
    assert prove(proof, signed(kid="one")) == ("orders", "")
    assert heard == []
    assert prove(proof, signed(kid="two")) == ("", "token_unknown_key")
    assert prove(proof, signed(number=1)) == ("", "token_signature")
    assert len(heard) == 2
    assert prove(proof, signed(kid="one", number=1)) == ("", "token_signature")
    assert len(heard) == 2  # that key is there


def test_nobody_need_hear_of_it() -> None:
    """Without a listener an unknown key is only refused."""
    assert prove(make_proof(keys={}), signed()) == ("", "token_unknown_key")


def test_keys_may_come_later() -> None:
    """A proof without keys proves nobody until it has got some."""
    proof = make_proof(keys={})
    assert prove(proof, signed())[0] == ""
    proof.replace([(None, SECRET)])
    assert prove(proof, signed()) == ("orders", "")


def test_a_key_of_another_kind() -> None:
    """A configuration that has mixed up keys refuses, and does not break."""
    assert prove(make_proof("RS256", {None: public("ES256")}), signed(alg="RS256"))[0] == ""
    assert prove(make_proof("ES256", {None: public("RS256")}), signed(alg="ES256"))[0] == ""


# ---------------------------------------------------------------- what is remembered


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The tokens whose signatures were verified."""
    seen: list[bytes] = []
    original = jwt.decode

    def counting(token: bytes, *args: Any, **kwargs: Any) -> Any:
        seen.append(token)
        return original(token, *args, **kwargs)

    monkeypatch.setattr(jwt, "decode", counting)
    return seen


def test_a_token_is_not_verified_again(verified: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """For half a minute of time that really passes, however the wall clock is set meanwhile; then it is."""
    clock = Clock(time())
    passing = Clock()
    monkeypatch.setattr(tokens, "monotonic", passing)
    proof = make_proof(clock=clock)
    token = signed()
    for _ in range(5):
        assert prove(proof, token) == ("orders", "")
    passing.advance(29)
    clock.advance(-3600)
    assert prove(proof, token) == ("orders", "")
    assert verified == [token]
    clock.advance(3600)
    passing.advance(2)
    assert prove(proof, token) == ("orders", "")
    assert verified == [token, token]


def test_what_is_remembered_expires_with_the_token(verified: list[bytes]) -> None:
    """Half a minute is not given on top of its own time."""
    clock = Clock(time())
    proof = make_proof(clock=clock, leeway=0.0)
    token = signed(claims(exp=int(clock()) + 10))
    assert prove(proof, token) == ("orders", "")
    clock.advance(11)
    prove(proof, token)
    assert len(verified) == 2


def test_a_bad_token_is_not_remembered(verified: list[bytes]) -> None:
    """Nobody fills the memory with what was never good."""
    proof = make_proof()
    for _ in range(3):
        assert prove(proof, signed(number=1)) == ("", "token_signature")
    assert len(verified) == 3
    assert not proof._remembered


def test_other_keys_forget_what_was_good() -> None:
    """A key that was taken away proves nothing from that moment on."""
    proof = make_proof()
    token = signed()
    assert prove(proof, token) == ("orders", "")
    proof.replace([(None, OTHER_SECRET)])
    assert prove(proof, token) == ("", "token_signature")


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens there are, only so many are remembered, and the others are good too."""
    monkeypatch.setattr("outrider.dataplane.policies.guard.tokens._MOST_REMEMBERED", 10)
    proof = make_proof()
    for number in range(30):
        assert prove(proof, signed(claims(jti=str(number)))) == ("orders", "")
    assert len(proof._remembered) == 10


# ---------------------------------------------------------------- what the app gets


def test_the_token_stays_here() -> None:
    """Unless it is wanted there."""
    assert make_proof().headers == {b"authorization"}
    assert make_proof(forward=True).headers == frozenset()
    assert make_proof(require=["X-User-Id"]).require == (b"x-user-id",)


# ---------------------------------------------------------------- anything at all

PROOFS = {alg: make_proof(alg) for alg in ALGORITHMS}


@given(st.binary(max_size=300), st.sampled_from(ALGORITHMS))
def test_no_bytes_break_it(value: bytes, alg: str) -> None:
    """Whatever stands in the header, it is refused and nothing is raised."""
    assert PROOFS[alg].prove(make_call(headers={b"authorization": value}))[0] == ""
    assert prove(PROOFS[alg], value)[0] == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip"]), JSON, max_size=4),
    st.dictionaries(st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "jti"]), JSON, max_size=7),
)
def test_no_signed_claims_break_it(header: dict[str, Any], said: dict[str, Any]) -> None:
    """Nor does what somebody with a good key may say: there is a caller, or a reason why not."""
    for made in (header, {**header, "alg": "HS256"}, {"alg": "HS256"}):
        caller, reason = prove(PROOFS["HS256"], handmade(made, {**claims(), **said}))
        assert bool(caller) != bool(reason)
