"""Keys, certificates and PEM files: what is read off them, and everything that is refused (RFC 5280, 7468, 8555)."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from shutil import which

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from sniproxy.bundle import (
    CLOCK_SKEW,
    MAX_CHAIN,
    MAX_PEM_BYTES,
    PLACEHOLDER,
    Bundle,
    Leaf,
    check_issued,
    general_name,
    generate_key,
    key_pem,
    load_key,
    placeholder,
    printable,
    read_certificates,
    signing_request,
    utc_now,
)
from sniproxy.errors import BadCertificate, BundleError
from tests.support.certificates import NOW, Signer, altered, certificate, common_name, pem, with_raw_names

RFC_9773 = b"""-----BEGIN CERTIFICATE-----
MIIBQzCB66ADAgECAgUAh2VDITAKBggqhkjOPQQDAjAVMRMwEQYDVQQDEwpFeGFt
cGxlIENBMCIYDzAwMDEwMTAxMDAwMDAwWhgPMDAwMTAxMDEwMDAwMDBaMBYxFDAS
BgNVBAMTC2V4YW1wbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEeBZu
7cbpAYNXZLbbh8rNIzuOoqOOtmxA1v7cRm//AwyMwWxyHz4zfwmBhcSrf47NUAFf
qzLQ2PPQxdTXREYEnKMjMCEwHwYDVR0jBBgwFoAUaYhba4dGQEHhs3uEe6CuLN4B
yNQwCgYIKoZIzj0EAwIDRwAwRAIge09+S5TZAlw5tgtiVvuERV6cT4mfutXIlwTb
+FYN/8oCIClDsqBklhB9KAelFiYt9+6FDj3z4KGVelYM5MdsO3pK
-----END CERTIFICATE-----
"""
"""The certificate of appendix A."""

PASSWORD = b"correct horse"
CURVE_P256 = bytes.fromhex("2a8648ce3d030107")
UNKNOWN_CURVE = bytes.fromhex("2a8648ce3d03010f")


@pytest.fixture(scope="module")
def key():
    return generate_key("ecdsa-p256")


@pytest.fixture(scope="module")
def rsa_key():
    return generate_key("rsa-2048")


@pytest.fixture(scope="module")
def root():
    return Signer()


@pytest.fixture(scope="module")
def intermediate(root):
    return Signer("test intermediate", root)


@pytest.fixture
def chain(key, intermediate):
    return (certificate(["a.example", "b.example"], key=key, signer=intermediate), *intermediate.chain)


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("key_type", "kind", "bits"),
    [
        ("ecdsa-p256", ec.EllipticCurvePrivateKey, 256),
        ("ecdsa-p384", ec.EllipticCurvePrivateKey, 384),
        ("rsa-2048", rsa.RSAPrivateKey, 2048),
        ("rsa-3072", rsa.RSAPrivateKey, 3072),
        ("rsa-4096", rsa.RSAPrivateKey, 4096),
    ],
)
def test_a_key_of_every_type_of_the_configuration(key_type, kind, bits):
    """Config, acme.key_type; each is read back as it was written."""
    made = generate_key(key_type)

    assert isinstance(made, kind)
    assert made.key_size == bits
    assert load_key(key_pem(made)).private_numbers() == made.private_numbers()


def test_the_exponent_of_rsa_keys_is_the_usual_one(rsa_key):
    """CA/Browser Forum Baseline Requirements, section 6.1.6: at least 2^16+1."""
    assert rsa_key.public_key().public_numbers().e == 65537


def test_keys_are_written_as_pkcs_8(key):
    """RFC 7468 section 10; HAProxy reads it for every kind of key."""
    assert key_pem(key).startswith(b"-----BEGIN PRIVATE KEY-----\n")


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("which_key", ["key", "rsa_key"])
def test_keys_are_read_in_either_form(form, which_key, request):
    """certbot writes PKCS #8, older clients "RSA PRIVATE KEY" and "EC PRIVATE KEY"."""
    key = request.getfixturevalue(which_key)
    encoded = key.private_bytes(Encoding.PEM, form, NoEncryption())

    assert load_key(encoded).private_numbers() == key.private_numbers()


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("which_key", ["key", "rsa_key"])
def test_a_key_with_a_password_is_refused(form, which_key, request):
    """Nobody is there to type it; the older form has headers with hyphens in them (RFC 1421)."""
    encoded = request.getfixturevalue(which_key).private_bytes(Encoding.PEM, form, BestAvailableEncryption(PASSWORD))

    with pytest.raises(BundleError, match="without a password"):
        load_key(encoded)
    with pytest.raises(BundleError, match="without a password"):
        Bundle.parse(encoded + pem(certificate(["a.example"])))


@pytest.mark.parametrize("other", ["ed25519", "dsa"])
def test_a_key_that_no_public_ca_takes_is_refused(other):
    """CA/Browser Forum Baseline Requirements, section 6.1.1.3: RSA and ECDSA."""
    made = Ed25519PrivateKey.generate() if other == "ed25519" else dsa.generate_private_key(2048)
    encoded = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with pytest.raises(BundleError, match="neither RSA nor ECDSA"):
        load_key(encoded)


def test_an_error_shows_nothing_of_the_key(key):
    """No private key may ever reach a log: neither by the text nor by what the error was raised from."""
    lines = key_pem(key).splitlines()
    for broken in (
        b"\n\n".join(lines),
        b"\n".join([lines[0], lines[1][:30] + b"!" + lines[1][31:], *lines[2:]]),
        b"\n".join([lines[0], *lines[2:]]),
    ):
        with pytest.raises(BundleError) as caught:
            load_key(broken)
        assert str(caught.value) == "the private key cannot be read; it must be PEM without a password"
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_a_bundle_shows_nothing_of_its_key(key):
    """Likewise, where a bundle is printed by a debugger or in a traceback."""
    assert "key" not in repr(Bundle(key, (certificate(["a.example"], key=key),)))


# ---------------------------------------------------------------------- requests


def test_a_request_has_the_names_and_nothing_else(key):
    """RFC 8555 section 7.4: exactly the identifiers of the order, in subjectAltName; a common name is not needed."""
    request = x509.load_der_x509_csr(signing_request(key, ["a.example", "192.0.2.1", "2001:db8::1"]))

    assert request.is_signature_valid
    assert request.subject == x509.Name([])
    assert list(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [
        x509.DNSName("a.example"),
        general_name("192.0.2.1"),
        general_name("2001:db8::1"),
    ]
    assert len(request.extensions) == 1


def test_a_request_is_for_the_key(rsa_key):
    """RFC 8555 section 7.4; with RSA the hash is SHA-256 too."""
    request = x509.load_der_x509_csr(signing_request(rsa_key, ["a.example"]))

    assert request.public_key().public_numbers() == rsa_key.public_key().public_numbers()
    assert isinstance(request.signature_hash_algorithm, hashes.SHA256)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_an_address_is_no_dns_name(address):
    """RFC 8738 section 3: an iPAddress, never a dNSName that looks like one."""
    assert isinstance(general_name(address), x509.IPAddress)


# ---------------------------------------------------------------------- what is known of a certificate


def test_its_names_are_in_its_own_order_and_lower_case():
    """DNS names are the same in either case (RFC 4343)."""
    made = certificate(["B.example", "a.example", "192.0.2.1", "2001:db8::1"])

    assert Leaf(made).names == ("b.example", "a.example", "192.0.2.1", "2001:db8::1")


def test_names_of_other_kinds_are_passed_over():
    """RFC 5280 section 4.2.1.6 has e-mail addresses and URIs too; no TLS client looks for a host there."""
    names = x509.SubjectAlternativeName([x509.RFC822Name("a@b.example"), x509.DNSName("a.example")])

    assert Leaf(certificate((), more=[names])).names == ("a.example",)


def test_a_common_name_counts_where_there_is_nothing_else():
    """RFC 6125 section 6.4.4: self-made certificates of appliances are like that."""
    assert Leaf(certificate((), subject=common_name("router.lan"))).names == ("router.lan",)


def test_a_common_name_does_not_count_beside_other_names():
    """RFC 6125 section 6.4.4."""
    assert Leaf(certificate(["a.example"], subject=common_name("b.example"))).names == ("a.example",)


def test_a_certificate_without_any_name():
    """RFC 5280 section 4.1.2.6 allows an empty subject."""
    leaf = Leaf(certificate((), subject=x509.Name([])))

    assert (leaf.names, leaf.issuer) == ((), "")


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param("3003" "8201ff", id="a DNS name that is no ASCII"),
        pytest.param("3005" "8703c00002", id="an address of three bytes"),
        pytest.param("3004" "a3023000", id="an X.400 address"),
        pytest.param("3005" "8201", id="cut off"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_read_are_not_replaced_by_the_common_name(encoded):
    """A failure is never taken for absence: a client would not take the common name either."""
    odd = with_raw_names(bytes.fromhex(encoded))

    assert Leaf(odd).names == ()
    with pytest.raises(BundleError, match="cannot be read"):
        read_certificates(pem(odd))


def test_a_network_among_the_names_is_shown_as_one():
    """RFC 5280 section 4.2.1.10 has that form for name constraints only; who writes it anyway finds it in the list."""
    assert Leaf(with_raw_names(bytes.fromhex("300a8708c0000200ffffff00"))).names == ("192.0.2.0/24",)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0x5, "05"), (0xAB, "ab"), (0x87654321, "87654321"), (0xFFF, "0fff"), (2**158, "40" + 38 * "0")],
)
def test_a_serial_number_has_as_many_digits_as_bytes_have(number, text):
    """As OpenSSL's and HAProxy's, but in lower case."""
    assert Leaf(certificate(["a.example"], serial=number)).serial == text


def test_its_time_is_aware():
    """RFC 5280 section 4.1.2.5: UTC."""
    leaf = Leaf(certificate(["a.example"], begins=NOW, ends=NOW + timedelta(days=90)))

    assert (leaf.not_before, leaf.not_after) == (NOW, NOW + timedelta(days=90))
    assert leaf.not_after.tzinfo is UTC


def test_who_signed_it_in_words(intermediate):
    """The common name of the issuer."""
    leaf = Leaf(certificate(["a.example"], signer=intermediate))

    assert (leaf.issuer, leaf.is_self_signed) == ("test intermediate", False)


def test_an_issuer_without_a_common_name():
    """RFC 4514: the whole name then."""
    odd = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Example")])
    leaf = Leaf(certificate(["a.example"], subject=odd))

    assert (leaf.issuer, leaf.is_self_signed) == ("O=Example", True)


def test_a_name_that_cannot_be_read_is_none():
    """RFC 5280 appendix A: UTF8String; a server may present a certificate where it is something else."""
    leaf = Leaf(altered(certificate((), subject=common_name("twelve bytes")), b"twelve bytes", b"twelve byte\xff"))

    assert (leaf.names, leaf.issuer, leaf.is_self_signed) == ((), "", False)


def test_the_fingerprint_is_in_haproxys_form():
    """`show ssl cert` (HAProxy's management guide, 9.3): SHA-1, hex, upper case, without colons."""
    made = certificate(["a.example"])

    assert Leaf(made).sha1 == made.fingerprint(hashes.SHA1()).hex().upper()
    assert len(Leaf(made).sha1) == 40


def test_der_is_what_goes_over_the_wire():
    """RFC 8446 section 4.4.2: cert_data."""
    made = certificate(["a.example"])

    assert x509.load_der_x509_certificate(Leaf(made).der) == made


def test_the_id_for_renewal_information():
    """RFC 9773 section 4.1, with the certificate of its appendix A; its serial number's first bit is set."""
    assert Leaf(*read_certificates(RFC_9773)).ari_certificate_id == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


@pytest.mark.parametrize(("serial", "end"), [(0x7F, "fw"), (0x80, "AIA"), (0x100, "AQA")])
def test_the_id_has_the_serial_number_as_der_has_it(serial, end):
    """RFC 9773 section 4.1: the bytes of the INTEGER, the leading zero of the sign included, without padding."""
    authority = x509.AuthorityKeyIdentifier(b"\1\2\3", None, None)
    leaf = Leaf(certificate(["a.example"], serial=serial, more=[authority]))

    assert leaf.ari_certificate_id == f"AQID.{end}"


def test_without_an_authority_key_id_there_is_no_id(root):
    """RFC 9773 section 4.1 takes its keyIdentifier; RFC 5280 lets it be left out."""
    by_name = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(root.name)], 5)

    assert Leaf(certificate(["a.example"])).ari_certificate_id is None
    assert Leaf(certificate(["a.example"], more=[by_name])).ari_certificate_id is None


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_serial_number_below_zero_breaks_nothing():
    """RFC 5280 section 4.1.2.2: MUST be positive, and readers should be gracious about those that are not."""
    authority = x509.AuthorityKeyIdentifier(b"\1\2\3", None, None)
    made = certificate(["a.example"], serial=5, more=[authority])
    leaf = Leaf(altered(made, b"\x02\x01\x05", b"\x02\x01\xfb"))

    assert leaf.serial == "-5"
    assert leaf.ari_certificate_id == "AQID.-w"


# ---------------------------------------------------------------------- files


def test_a_bundle_is_read_as_it_is_written(key, chain):
    """HAProxy's crt: key, leaf, chain, in one file."""
    written = Bundle(key, chain)
    read = Bundle.parse(written.pem)

    assert read.chain == chain
    assert read.key.private_numbers() == key.private_numbers()
    assert read.leaf.names == ("a.example", "b.example")


def test_there_is_no_empty_line_in_it(key, chain):
    """HAProxy's management guide, 9.3: an empty line ends the payload of `set ssl cert`."""
    written = Bundle(key, chain).pem

    assert b"\n\n" not in written
    assert written.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert written.endswith(b"-----END CERTIFICATE-----\n")


@pytest.mark.skipif(which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_it_too(key, chain, tmp_path):
    """An independent reader finds key and leaf."""
    path = tmp_path / "bundle.pem"
    path.write_bytes(Bundle(key, chain).pem)
    found = [
        subprocess.run(["openssl", *words, "-in", path], check=True, capture_output=True).stdout
        for words in (["pkey", "-pubout"], ["x509", "-noout", "-pubkey"])
    ]

    assert found[0] == found[1] == key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_the_key_may_come_last_and_text_stand_around(key, chain):
    """RFC 7468 section 2: text before and after is for people; HAProxy takes either order."""
    text = b"subject=CN = a.example\nissuer=-- test --\n\n"
    read = Bundle.parse(b"\xef\xbb\xbf" + text + text.join([pem(chain[0]), pem(chain[1]), key_pem(key), b"\n\n"]))

    assert read.chain == chain


def test_lines_may_end_as_on_windows(key, chain):
    """RFC 7468 section 3: CRLF, CR or LF."""
    assert Bundle.parse(Bundle(key, chain).pem.replace(b"\n", b"\r\n")).chain == chain


def test_empty_lines_between_the_blocks(key, chain):
    """What `cat` makes of files that end in one; what is written again has none."""
    read = Bundle.parse(Bundle(key, chain).pem.replace(b"-----BEGIN", b"\n\n\n-----BEGIN"))

    assert read.chain == chain
    assert read.pem == Bundle(key, chain).pem


def test_parameters_of_a_curve_are_passed_over(key, chain):
    """`openssl ecparam -genkey` writes them before the key."""
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"

    assert Bundle.parse(parameters + Bundle(key, chain).pem).chain == chain


def test_the_old_word_for_a_certificate(key, chain):
    """OpenSSL's PEM_STRING_X509_OLD; HAProxy takes it."""
    old = Bundle(key, chain).pem.replace(b" CERTIFICATE-", b" X509 CERTIFICATE-")

    assert Bundle.parse(old).chain == chain
    assert read_certificates(old) == chain


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("", "there is no private key"),
        ("certificate", "there is no private key"),
        ("key", "there is no certificate"),
        ("key key certificate", "there is more than one private key"),
        ("other certificate", "the private key is not the one of the certificate"),
        ("key authority certificate", "the private key is not the one of the certificate"),
    ],
)
def test_what_does_not_belong_together(parts, message, key, chain):
    """A bundle is one key, its certificate first, then the chain."""
    known = {
        "key": key_pem(key),
        "other": key_pem(generate_key("ecdsa-p256")),
        "certificate": pem(chain[0]),
        "authority": pem(chain[1]),
    }

    with pytest.raises(BundleError) as caught:
        Bundle.parse(b"".join(known[part] for part in parts.split()))
    assert str(caught.value) == message


def test_an_rsa_key_with_an_ecdsa_certificate(rsa_key, chain):
    """What is left of a switch of key types."""
    with pytest.raises(BundleError, match="is not the one of the certificate"):
        Bundle(rsa_key, chain)


def test_a_certificate_with_a_key_of_another_kind(key):
    """RFC 8410: Ed25519 is read, and is not this key."""
    with pytest.raises(BundleError, match="is not the one of the certificate"):
        Bundle(key, (certificate(["a.example"], key=Ed25519PrivateKey.generate()),))


def test_a_certificate_with_a_curve_that_is_not_known(key):
    """RFC 5480: curves are named by number, and there is always one more."""
    odd = altered(certificate(["a.example"], key=key), CURVE_P256, UNKNOWN_CURVE)

    with pytest.raises(BundleError, match="of a kind that cannot be read"):
        Bundle(key, (odd,))


def test_a_file_that_is_too_large_is_not_looked_into(key, chain):
    """Every buffer has a cap."""
    large = Bundle(key, chain).pem.ljust(MAX_PEM_BYTES + 1)

    for read in (Bundle.parse, read_certificates):
        read(large[:MAX_PEM_BYTES])
        with pytest.raises(BundleError, match=f"more than {MAX_PEM_BYTES} bytes"):
            read(large)


@pytest.mark.parametrize(
    "filler", [b"-----BEGIN CERTIFICATE-----\n", b"-", b"-----BEGIN A-----\n-", b"-----BEGIN A----" + b"-" * 70 + b"\n"]
)
def test_a_file_made_to_be_slow_is_not(filler):
    """Looking for blocks takes as long as the file is: with quadratic time, this would run into the test's limit."""
    with pytest.raises(BundleError):
        read_certificates((filler * MAX_PEM_BYTES)[:MAX_PEM_BYTES])


def test_certificates_are_read_in_the_order_of_the_file(chain, key):
    """The leaf is the first of a bundle; the key is passed over."""
    assert read_certificates(pem(*reversed(chain)) + key_pem(key)) == tuple(reversed(chain))


def test_a_der_file_is_one_certificate():
    """RFC 5280 section 4.1: what Windows and browsers save as .cer."""
    made = certificate(["a.example"])

    assert read_certificates(made.public_bytes(Encoding.DER)) == (made,)


def test_text_that_begins_with_a_zero_is_not_der(chain):
    """`openssl s_client -showcerts` prints " 0 s:" before the first certificate."""
    assert read_certificates(b"0 s:CN = a.example\n" + pem(*chain)) == chain


@pytest.mark.parametrize("content", [b"", b"nothing\n", b"-----BEGIN CERTIFICATE-----\nMIIB\n"])
def test_a_file_without_a_certificate(content):
    """A block that has no end is none."""
    with pytest.raises(BundleError, match="there is no certificate in it"):
        read_certificates(content)


def broken_files():
    whole = certificate(["a.example"], subject=common_name("twelve bytes"))
    lines = pem(whole).splitlines(keepends=True)
    der = whole.public_bytes(Encoding.DER)
    twice = certificate(["a.example"], more=[x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.14"), b"\4\0")])
    return {
        "a line missing": b"".join([*lines[:2], *lines[3:]]),
        "an empty line inside": b"".join([*lines[:2], b"\n", *lines[2:]]),
        "not base64": b"".join([lines[0], b"!" + lines[1][1:], *lines[2:]]),
        "DER cut off": der[:-1],
        "DER with more behind it": der + b"\0",
        "DER of something else": b"\x30\x03\x02\x01\x05",
        "a name that is not UTF-8": pem(altered(whole, b"twelve bytes", b"twelve byte\xff")),
        "an extension twice": pem(
            altered(twice, bytes.fromhex("0603551d0e0402") + b"\4\0", bytes.fromhex("0603551d110402") + b"\4\0")
        ),
    }


@pytest.mark.parametrize("what", broken_files())
def test_a_certificate_that_is_broken(what):
    """The error is ours, and quotes nothing of the file: it may be a key with the wrong label."""
    with pytest.raises(BundleError) as caught:
        read_certificates(broken_files()[what])
    assert str(caught.value) == "a certificate in it cannot be read: it is cut off, or altered, or not X.509"
    assert caught.value.__suppress_context__


# ---------------------------------------------------------------------- what a CA has issued


def test_what_was_ordered_is_taken(key, chain):
    """RFC 8555 section 7.4.2: the leaf, then each one that has signed the one before."""
    assert check_issued(key, chain, ["b.example", "a.example"], NOW).chain == chain


def test_the_root_may_be_there(key, chain, root):
    """RFC 8555 section 7.4.2 lets the CA leave it out, and some do not."""
    assert check_issued(key, (*chain, root.certificate), ["a.example", "b.example"], NOW).chain[-1] == root.certificate


def test_a_chain_of_rsa_certificates(rsa_key):
    """RFC 4055: the other kind of signature."""
    root = Signer(key=rsa_key)
    key = generate_key("ecdsa-p384")

    chain = (certificate(["a.example"], key=key, signer=root), root.certificate)

    assert check_issued(key, chain, ["a.example"], NOW).chain == chain


def test_addresses_are_names_too(key, root):
    """RFC 8738."""
    issued = certificate(["192.0.2.1", "2001:db8::1"], key=key, signer=root)

    assert check_issued(key, [issued], ["2001:db8::1", "192.0.2.1"], NOW).leaf.certificate == issued


def test_a_common_name_that_repeats_a_name_is_fine(key, root):
    """CA/Browser Forum Baseline Requirements, section 7.1.4.3: it must be one of the others, if it is there."""
    issued = certificate(["a.example"], key=key, signer=root, subject=common_name("a.example"))

    assert check_issued(key, [issued], ["a.example"], NOW).chain == (issued,)


def test_a_clock_that_is_behind_is_borne_with(key, root):
    """An hour, as CAs date back for the same reason."""
    issued = certificate(["a.example"], key=key, signer=root, begins=NOW + CLOCK_SKEW)

    assert check_issued(key, [issued], ["a.example"], NOW).chain == (issued,)


def wrong(key, root):
    """What a CA may get wrong: the chain, and what is said of it."""

    def made(names=("a.example",), **options):
        return certificate(names, key=options.pop("key", key), signer=root, **options)

    other = Signer()
    return {
        "nothing": ([], "the CA's certificate is of no use: there is no certificate"),
        "another key": (
            [made(key=generate_key("ecdsa-p256"))],
            "the CA's certificate is of no use: the private key is not the one of the certificate",
        ),
        "an unknown curve": (
            [altered(made(), CURVE_P256, UNKNOWN_CURVE)],
            "the CA's certificate is of no use: the public key of the certificate is of a kind that cannot be read",
        ),
        "a chain without end": (
            [made(), *[root.certificate] * MAX_CHAIN],
            f"the CA's chain has {MAX_CHAIN + 1} certificates",
        ),
        "another name": (
            [made(["b.example"])],
            "the CA's certificate is for b.example, not for a.example",
        ),
        "a name more": (
            [made(["a.example", "b.example"])],
            "the CA's certificate is for a.example, b.example, not for a.example",
        ),
        "no name": (
            [made((), subject=x509.Name([]))],
            "the CA's certificate is for no name, not for a.example",
        ),
        "a name that breaks the line": (
            [made((), subject=common_name("a\nERROR b\x1b[2J"))],
            "the CA's certificate is for a?ERROR b?[2J, not for a.example",
        ),
        "names that cannot be read": (
            [with_raw_names(bytes.fromhex("30038201ff"), key=key)],
            "the CA's certificate is for no name, not for a.example",
        ),
        "over": (
            [made(begins=NOW - timedelta(days=90), ends=NOW)],
            "the CA's certificate is over since 2026-11-25 12:00 UTC; is the clock right?",
        ),
        "not begun": (
            [made(begins=NOW + CLOCK_SKEW + timedelta(seconds=1))],
            "the CA's certificate begins at 2026-11-25 13:00 UTC; is the clock right?",
        ),
        "a signer of the same name": (
            [made(), other.certificate],
            "the CA's chain does not hold: a certificate in it was not signed by the next",
        ),
        "a signer of another name": (
            [made(), Signer("another").certificate],
            "the CA's chain does not hold: a certificate in it was not signed by the next",
        ),
        "a signer with another kind of key": (
            [made(), Signer(key=Ed25519PrivateKey.generate()).certificate],
            "the CA's chain does not hold: a certificate in it was not signed by the next",
        ),
        "a signer with a key that is not known": (
            [made(), altered(root.certificate, CURVE_P256, UNKNOWN_CURVE)],
            "the CA's chain does not hold: a certificate in it was not signed by the next",
        ),
        "a broken link further up": (
            [made(), root.certificate, other.certificate],
            "the CA's chain does not hold: a certificate in it was not signed by the next",
        ),
    }


WRONG = (
    "nothing",
    "another key",
    "an unknown curve",
    "a chain without end",
    "another name",
    "a name more",
    "no name",
    "a name that breaks the line",
    "names that cannot be read",
    "over",
    "not begun",
    "a signer of the same name",
    "a signer of another name",
    "a signer with another kind of key",
    "a signer with a key that is not known",
    "a broken link further up",
)


@pytest.mark.parametrize("what", WRONG)
def test_what_was_not_ordered_is_refused(what, key, root):
    """BadCertificate: the CA issued something else than what was ordered."""
    chain, message = wrong(key, root)[what]

    with pytest.raises(BadCertificate) as caught:
        check_issued(key, chain, ["a.example"], NOW)
    assert str(caught.value) == message


def test_every_refusal_is_tried(key, root):
    """The list of names above is that of the cases."""
    assert tuple(wrong(key, root)) == WRONG


# ---------------------------------------------------------------------- placeholders, and the rest


def test_a_placeholder_is_for_the_names_and_for_a_week(key):
    """So that HAProxy starts: with an empty directory, or one name missing from a crt-list, it does not."""
    made = placeholder(["a.example", "192.0.2.1"], NOW)

    assert made.leaf.names == ("a.example", "192.0.2.1")
    assert (made.leaf.issuer, made.leaf.is_self_signed) == (PLACEHOLDER, True)
    assert made.leaf.not_before <= NOW - CLOCK_SKEW
    assert made.leaf.not_after == NOW + timedelta(days=7)
    assert Bundle.parse(made.pem).chain == made.chain


def test_no_two_placeholders_are_the_same():
    """Their keys are their own."""
    first, second = (placeholder(["a.example"], NOW) for _ in range(2))

    assert first.leaf.serial != second.leaf.serial
    assert key_pem(first.key) != key_pem(second.key)


def test_the_time_of_day_is_aware():
    """Names of time zones and summer time have no say in when a certificate is over."""
    assert utc_now().tzinfo is UTC
    assert abs(utc_now() - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(("text", "shown"), [("a b", "a b"), ("a\n\x1b[31mb\x7f", "a??[31mb?"), ("bücher", "bücher")])
def test_what_is_shown_of_a_name_stays_on_its_line(text, shown):
    """Terminals obey what certificates may hold."""
    assert printable(text) == shown
