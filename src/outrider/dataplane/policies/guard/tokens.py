"""A bearer token as proof of who calls: a signed JWT (RFC 7519), checked as RFC 8725 advises.

The algorithm is the configuration's, never the token's; a key is made for one algorithm and used with no other; expiry
and audience are required. What has been checked is remembered for a short time, because signatures are dear and a
caller sends the same token many times. PyJWT does the cryptography.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from outrider.model.messages import is_field_value

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")
_SCHEME: Final = b"bearer "
_LARGEST: Final = 8192  # bytes of a token
_MOST_REMEMBERED: Final = 4096
# Seconds that a checked token is taken for good: no longer than its own expiry.
_REMEMBER: Final = 30.0

# Signatures that are checked for one token at most: strangers can send any number of tokens.
_MOST_CANDIDATES: Final = 8
# Unix time that no expiry is beyond: the year 9999.
_END_OF_TIME: Final = 253402300799

# The keys, each with its `kid`, or None for one without.
Keys = Sequence[tuple[str | None, Any]]


class TokenProof:
    """Tokens in `Authorization: Bearer`, signed with `alg` by one of `keys`. The caller is `iss`."""

    __slots__ = (
        "_alg",
        "_audience",
        "_clock",
        "_issuers",
        "_keys",
        "_leeway",
        "_remembered",
        "forwarded",
        "headers",
        "key",
        "name",
        "require",
        "unknown_key",
    )

    def __init__(  # noqa: PLR0913 # settings, all but the first few by keyword
        self,
        alg: str,
        keys: Keys,
        *,
        audience: str,
        issuers: Sequence[str] = (),
        leeway: float = 30.0,
        require: Sequence[str] = (),
        forward: bool = False,
        name: str = "",
        clock: Callable[[], float] = time,
    ) -> None:
        """`issuers`: nobody else's are taken; empty: anybody's who has the key. `leeway` (seconds) is for clocks that
        differ."""
        self.name = self.key = name
        self._alg = alg
        self._keys = tuple(keys)
        self._audience = audience
        self._issuers = frozenset(issuers)
        self._leeway = leeway
        self._clock = clock
        self._remembered: OrderedDict[bytes, tuple[str, float, float]] = OrderedDict()
        self.require = tuple(name.lower().encode() for name in require)
        self.headers = frozenset() if forward else frozenset((b"authorization",))
        self.forwarded = b"authorization" if forward else b""
        self.unknown_key: Callable[[], None] = _nobody  # called for a token that may be of a key not among these

    def replace(self, keys: Keys) -> None:
        """Take these keys from now on."""
        self._keys = tuple(keys)
        self._remembered.clear()

    def prove(self, call: Call) -> tuple[str, str]:
        given = [value for lower, _, value in call.fields if lower == b"authorization"]
        if not given or given[0][: len(_SCHEME)].lower() != _SCHEME:
            return "", "no_token"
        if len(given) > 1:
            return "", "token_twice"
        token = given[0][len(_SCHEME) :].strip(b" ")
        if len(token) > _LARGEST:
            return "", "token_too_large"
        known = self._remembered.get(token)
        if known is not None and self._clock() < known[1] and monotonic() < known[2]:
            return known[0], ""
        return self._check(token)

    def _check(self, token: bytes) -> tuple[str, str]:
        import jwt  # of an extra, and only where tokens are configured

        try:
            header_segment, claims_segment, _ = token.split(b".")
            header = _members(header_segment)
            if header.get("alg") != self._alg:
                return "", "token_algorithm"
            kid = header.get("kid")
            # What `crit` demands must not be ignored (RFC 7515 §4.1.11), and nothing is known that it could demand.
            if "crit" in header or not (kid is None or isinstance(kid, str)):
                return "", "token_malformed"
            claims = self._verified(token, kid)
            if claims is None:
                return "", "token_unknown_key"
            expires = _times(_members(claims_segment))
        except jwt.ExpiredSignatureError:
            return "", "token_expired"
        except jwt.ImmatureSignatureError:
            return "", "token_from_the_future"
        except jwt.InvalidAudienceError:
            return "", "token_audience"
        except jwt.InvalidSignatureError:
            return "", "token_signature"
        except jwt.MissingRequiredClaimError:
            return "", "token_incomplete"
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            return "", "token_malformed"
        issuer = claims["iss"]
        if (
            not isinstance(issuer, str)
            or not issuer
            or not is_field_value(issuer)
            or (self._issuers and issuer not in self._issuers)
        ):
            return "", "token_issuer"
        self._remember(token, issuer, expires)
        return issuer, ""

    def _verified(self, token: bytes, kid: str | None) -> dict[str, Any] | None:
        """The claims of a token that one of the keys has signed; None if no key comes into question. Raises what PyJWT
        raises; of several keys what the last one led to."""
        import jwt

        named = [key for name, key in self._keys if name == kid and kid is not None]
        # A key without a name may be the one that a token names; a token without a name may be of any key.
        candidates = named or [key for name, key in self._keys if name is None or kid is None]
        failed: jwt.InvalidSignatureError | None = None
        for key in candidates[:_MOST_CANDIDATES]:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[self._alg],
                    audience=self._audience,
                    leeway=self._leeway,
                    options={"require": ["exp", "aud", "iss"]},
                )
            except jwt.InvalidSignatureError as error:
                failed = error
            else:
                return claims
        if not named:
            self.unknown_key()  # the key that it was signed with may be new
        if failed is not None:
            raise failed
        return None

    def _remember(self, token: bytes, issuer: str, expires: float) -> None:
        self._remembered[token] = (issuer, expires + self._leeway, monotonic() + _REMEMBER)
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)


def _members(segment: bytes) -> dict[str, Any]:
    """The members of a token's header or claims. Raises ValueError for anything but an object, for a member that comes
    twice, since others may take the other one, and for numbers that are none (RFC 8259 §6)."""
    padded = segment + b"=" * (-len(segment) % 4)
    found = json.loads(urlsafe_b64decode(padded), object_pairs_hook=_unique, parse_constant=_no_number)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member comes twice")
    return members


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _times(claims: dict[str, Any]) -> float:
    """When the token expires, Unix time. Raises ValueError if a time in it is not a number (RFC 7519 §2)."""
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name)
        if value is None and name != "exp":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_END_OF_TIME <= value <= _END_OF_TIME:
            raise ValueError(f"{name} is not a time")
    return float(claims["exp"])


def _nobody() -> None:
    pass
