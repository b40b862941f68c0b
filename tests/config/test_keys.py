"""Keys for tokens and files for TLS: whatever is in the wrong place is told with its line and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from outrider.config.keys import KeyTextError, signing_key, verifying_key
from outrider.config.load import load
from outrider.controlplane.compile import compile_config
from outrider.errors import ConfigError

PRIVATE = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "RSA 1024": rsa.generate_private_key(public_exponent=65537, key_size=1024),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "Ed448": ed448.Ed448PrivateKey.generate(),
}
PUBLIC_PEM = {
    name: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for name, key in PRIVATE.items()
}
PRIVATE_PEM = {
    name: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode() for name, key in PRIVATE.items()
}
AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.cert_pem.bytes().decode()
ENCRYPTED = PRIVATE["RS256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode()
OLD_ENCRYPTED = (
    PRIVATE["RS256"]
    .private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"x"))
    .decode()
)
RSA_PEM = PUBLIC_PEM["RS256"]

NO_PUBLIC_KEYS = {
    "a certificate": ("RS256", CERTIFICATE, "this is a certificate"),
    "a private key": ("RS256", PRIVATE_PEM["RS256"], "this is a private key"),
    "a literal line end": ("RS256", RSA_PEM.replace("\n", "\\n"), r"written as \\n"),
    "cut short": ("RS256", RSA_PEM[:150], "has no end"),
    "cut in the middle": ("RS256", "\n".join(RSA_PEM.splitlines()[:2] + RSA_PEM.splitlines()[-1:]), "not a public key"),
    "nonsense inside": ("RS256", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "not a public key"),
    "nothing inside": ("RS256", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", "not a public key"),
    "a beginning alone": ("RS256", "-----BEGIN PUBLIC KEY-----", "has no end"),
    "two keys": ("RS256", RSA_PEM + PUBLIC_PEM["ES256"], "got 2 blocks"),
    "another label": ("RS256", RSA_PEM.replace("PUBLIC KEY", "DH PARAMETERS"), "not a public key"),
    "text": ("RS256", "nonsense", "takes a public key in PEM"),
    "another kind": ("RS256", PUBLIC_PEM["ES256"], "of the kind RSA, and this is one of EC"),
    "another curve": ("ES256", PUBLIC_PEM["P-384"], "on the curve P-256"),
    "a curve of coins": ("ES256", PUBLIC_PEM["secp256k1"], "on the curve P-256"),
    "another Edwards curve": ("EdDSA", PUBLIC_PEM["Ed448"], "of the kind Ed25519"),
    "too short": ("RS256", PUBLIC_PEM["RSA 1024"], "only 1024 bits"),
    "a short secret": ("HS256", "x" * 31, "only 31 characters"),
    "a PEM as secret": ("HS256", RSA_PEM, "not a PEM key"),
}
NO_PRIVATE_KEYS = {
    "a certificate": ("RS256", CERTIFICATE, "this is a certificate"),
    "a public key": ("RS256", RSA_PEM, "this is a public key"),
    "a passphrase": ("RS256", ENCRYPTED, "has a passphrase"),
    "an old passphrase": ("RS256", OLD_ENCRYPTED, "has a passphrase"),
    "a literal line end": ("RS256", PRIVATE_PEM["RS256"].replace("\n", "\\n"), r"written as \\n"),
    "cut short": ("RS256", PRIVATE_PEM["RS256"][:300], "has no end"),
    "another kind": ("ES256", PRIVATE_PEM["RS256"], "of the kind EC, and this is one of RSA"),
    "another curve": ("ES256", PRIVATE_PEM["P-384"], "on the curve P-256"),
    "too short": ("RS256", PRIVATE_PEM["RSA 1024"], "only 1024 bits"),
    "a short secret": ("HS256", "short", "only 5 characters"),
}


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_good_keys(alg: str) -> None:
    """Both halves, with text and line ends around them."""
    assert verifying_key(alg, f"a comment\n{PUBLIC_PEM[alg]}\n\n")
    assert signing_key(alg, f"\n{PRIVATE_PEM[alg]}\n")
    assert verifying_key("HS256", "x" * 32) == b"x" * 32


@pytest.mark.parametrize("name", NO_PUBLIC_KEYS)
def test_what_verifies_nothing(name: str, tmp_path: Path) -> None:
    """Told by `check` at the line of the key, with what it is instead, and without a piece of it."""
    alg, text, why = NO_PUBLIC_KEYS[name]
    with pytest.raises(KeyTextError, match=why) as caught:
        verifying_key(alg, text)
    assert "MII" not in str(caught.value) + caught.value.hint
    (tmp_path / "key").write_text(text)
    _refused(
        tmp_path,
        f"""
inbound:
  listen: 127.0.0.1:0
  app: http://127.0.0.1:1
  accept:
    - jwt:
        alg: {alg}
        key: "${{file:{tmp_path}/key}}"
        audience: a
""",
        10,
    )


@pytest.mark.parametrize("name", NO_PRIVATE_KEYS)
def test_what_signs_nothing(name: str, tmp_path: Path) -> None:
    """Told by `check` at the line of the key, with what it is instead, and without a piece of it."""
    alg, text, why = NO_PRIVATE_KEYS[name]
    with pytest.raises(KeyTextError, match=why) as caught:
        signing_key(alg, text)
    assert "MII" not in str(caught.value) + caught.value.hint
    (tmp_path / "key").write_text(text)
    _refused(tmp_path, f'credentials:\n  k:\n    jwt:\n      alg: {alg}\n      key: "${{file:{tmp_path}/key}}"\n', 7)


def _refused(folder: Path, text: str, line: int) -> None:
    file = folder / "outrider.yaml"
    file.write_text(f"service: a\nservices: {{ user: 'http://h:1' }}\n{text}")
    with pytest.raises(ConfigError) as caught:
        load([str(file)])
    (problem,) = caught.value.problems
    assert problem.mark.line == line


# ---------------------------------------------------------------- TLS


def _files(folder: Path) -> dict[str, str]:
    """Files of every kind that could be named by mistake."""
    leaf, other = AUTHORITY.issue_cert("localhost"), trustme.CA().issue_cert("localhost")
    certificate, key = leaf.cert_chain_pems[0].bytes().decode(), leaf.private_key_pem.bytes().decode()
    return {
        "ca": CERTIFICATE,
        "cert": certificate,
        "key": key,
        "other": other.private_key_pem.bytes().decode(),
        "public": RSA_PEM,
        "empty": "",
        "text": "nonsense",
        "cut": certificate[:200],
        "cut key": key[:100],
        "inside": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "inside key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "escaped": certificate.replace("\n", "\\n"),
        "escaped key": key.replace("\n", "\\n"),
        "encrypted": ENCRYPTED,
        "old encrypted": OLD_ENCRYPTED,
        "binary": "\0\1\2",
    }


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    ("part", "file"),
    [
        *[("ca", one) for one in ("key", "public", "empty", "text", "cut", "inside", "escaped", "binary", "none")],
        *[("cert", one) for one in ("key", "public", "empty", "text", "cut", "inside", "escaped", "binary", "none")],
        *[("key", one) for one in ("cert", "other", "public", "empty", "text", "cut key", "inside key", "escaped key",
                                   "encrypted", "old encrypted", "binary", "none")],
    ],
)  # fmt: skip
def test_tls_files_that_are_none(side: str, part: str, file: str, tmp_path: Path) -> None:
    """Told by `check` at the line where the file is named, or at that of the file it does not fit."""
    for name, text in _files(tmp_path).items():
        (tmp_path / name).write_text(text)
    named = {"ca": "ca", "cert": "cert", "key": "key"}
    named[part] = file
    paths = {kind: tmp_path / name for kind, name in named.items()}
    if side == "client":
        text = "services:\n  user:\n    url: https://h:1\n    tls:\n"
        text += "".join(f"      {kind}: '{path}'\n" for kind, path in paths.items())
    else:
        text = "services: { user: 'http://h:1' }\ninbound:\n  listen: 127.0.0.1:0\n  app: http://127.0.0.1:1\n  tls:\n"
        text += "".join(f"    {'client_ca' if kind == 'ca' else kind}: '{path}'\n" for kind, path in paths.items())
    config = tmp_path / "outrider.yaml"
    config.write_text(f"service: a\n{text}")
    with pytest.raises(ConfigError) as caught:
        compile_config(load([str(config)])[0])
    (problem,) = [one for one in caught.value.problems if one.severity == "error"]
    assert problem.path.rpartition(".")[2] in {"ca", "client_ca", "cert", "key"}
    assert str(tmp_path) in problem.message


def test_tls_files_that_fit(tmp_path: Path) -> None:
    """The same files in their right places are taken."""
    for name, text in _files(tmp_path).items():
        (tmp_path / name).write_text(text)
    config = tmp_path / "outrider.yaml"
    config.write_text(
        "service: a\nservices:\n  user:\n    url: https://h:1\n"
        f"    tls: {{ ca: {tmp_path}/ca, cert: {tmp_path}/cert, key: {tmp_path}/key }}\n"
    )
    assert compile_config(load([str(config)])[0])
