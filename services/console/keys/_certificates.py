"""The authority that speaks for this bus, and the certificate of its servers: they know each other by it, too.

Clients are known by their nkeys, so the authority signs nothing but servers' certificates.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS: Final = 3650
_SKEW: Final = dt.timedelta(minutes=5)  # a server's clock may be behind ours
_ALWAYS: Final = ("localhost", "127.0.0.1", "::1")


class Pair:
    """A certificate and its private key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self.key = key

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> Self:
        """Read both as PEM. Raises ValueError where they are none, or do not belong together."""
        try:
            read = x509.load_pem_x509_certificate(certificate)
            private = serialization.load_pem_private_key(key, password=None)
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(str(error)) from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != read.public_key():
            raise ValueError("the key is not that of the certificate")
        return cls(read, private)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as it is written into a file."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as it is written into a file."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def names(self) -> tuple[str, ...]:
        """For which names and addresses it speaks."""
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        return tuple(str(name.value) for name in found)

    def ends_within(self, left: dt.timedelta, now: dt.datetime) -> bool:
        """Tell whether it has expired, or soon will have."""
        return self.certificate.not_valid_after_utc - now < left

    def issued(self, other: Pair) -> bool:
        """Tell whether this is the authority that issued the other."""
        try:
            other.certificate.verify_directly_issued_by(self.certificate)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True


def new_authority(now: dt.datetime) -> Pair:
    """Make an authority that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Holdfast")])
    uses = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    built = (
        _builder(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(uses, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(built, key)


def new_server(authority: Pair, names: Iterable[str], now: dt.datetime, days: int) -> Pair:
    """Make a server's certificate for these names and for this machine's own.

    It serves both ends of a route between two servers of a cluster, so it is a client's certificate too.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    all_names = tuple(dict.fromkeys((*names, *_ALWAYS)))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "NATS server of Holdfast")])
    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer = authority.key.public_key()
    built = (
        _builder(name, authority.certificate.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general(one) for one in all_names]), critical=False)
        .add_extension(uses, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Pair(built, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
