"""TLS files: whether they are there, whether they fit together, and the contexts made from them."""

from __future__ import annotations

import ssl
from typing import Final

from outrider.config.schema import ClientTls, Config, Inbound, PolicyFields, ServerTls
from outrider.config.source import Document, KeyPath
from outrider.files import FileError, read_small_file

# Bytes of one file; the authorities of a system take a quarter of a megabyte.
LARGEST: Final = 4 << 20


class TlsFileError(ValueError):
    """A file that cannot be used; `key` is the key it stands under (ca, cert, key, client_ca)."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.hint = hint


def load_client(context: ssl.SSLContext, tls: ClientTls) -> None:
    """Put the files of a client into a context. Raises TlsFileError."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _trust(context, "ca", tls.ca)
    if tls.cert is not None:
        _show(context, tls.cert, tls.key)
    elif tls.key is not None:
        raise TlsFileError("key", "there is a key but no certificate", "name the certificate under tls.cert")


def load_server(context: ssl.SSLContext, tls: ServerTls, client_optional: bool = False) -> None:
    """Put the files of a listener into a context. With `client_optional`, a caller may show a certificate but need not.
    Raises TlsFileError."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _show(context, tls.cert, tls.key)
    if tls.client_ca is not None:
        _trust(context, "client_ca", tls.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL if client_optional else ssl.CERT_REQUIRED


def other_proofs(inbound: Inbound) -> bool:
    """Whether who shows no certificate may prove itself in another way."""
    certificates = [accept.certificate is not None for accept in inbound.accept]
    return any(certificates) and not all(certificates)


def check_tls(config: Config, document: Document) -> None:
    """Try every file that is named, and complain where it is named."""
    layers: list[tuple[KeyPath, PolicyFields]] = [(("defaults",), config.defaults)]
    layers += [(("policies", name), policy) for name, policy in config.policies.items()]
    layers += [(("services", name), service) for name, service in config.services.items()]
    for at, layer in layers:
        if layer.tls and (layer.tls.ca or layer.tls.cert or layer.tls.key):
            _try(
                document, (*at, "tls"), lambda tls=layer.tls: load_client(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls)
            )
    for name, service in config.services.items():
        for index, route in enumerate(service.routes):
            if route.tls is not None:
                path = ("services", name, "routes", index, "tls")
                document.complain(path, "tls belongs to the service: its routes share its connections")
    inbound = config.inbound
    if inbound is not None and inbound.tls is not None:
        tls = inbound.tls
        _try(document, ("inbound", "tls"), lambda: load_server(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls))


def _try(document: Document, at: KeyPath, load: object) -> None:
    assert callable(load)
    try:
        load()
    except TlsFileError as error:
        document.complain((*at, error.key), str(error), error.hint)


def _trust(context: ssl.SSLContext, key: str, file: str | None) -> None:
    if file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return
    _read(key, file)
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError:
        raise TlsFileError(
            key, f"{file} holds no certificates", "it must be PEM: -----BEGIN CERTIFICATE-----"
        ) from None


def _show(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    if b"-----BEGIN CERTIFICATE" not in _read("cert", cert):
        raise TlsFileError("cert", f"{cert} holds no certificate", "it must be PEM: -----BEGIN CERTIFICATE-----")
    place = "key" if key is not None else "cert"
    text = _read(place, key or cert)
    if b"PRIVATE KEY-----" not in text:
        raise TlsFileError(place, f"{key or cert} holds no private key", "name its file under tls.key, in PEM")
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsFileError(place, f"{key or cert} is not the key of the certificate in {cert}") from None
        raise TlsFileError("cert", f"{cert} cannot be used: {error.reason or error}") from None
    except ValueError:
        raise TlsFileError(place, f"{key or cert} has a passphrase, which nobody could type in") from None


def _no_passphrase() -> str:
    raise ValueError("a passphrase is needed")


def _read(key: str, file: str) -> bytes:
    try:
        return read_small_file(file, LARGEST)
    except FileError as error:
        raise TlsFileError(key, str(error), "name a file that this process may read, by its whole path") from None
