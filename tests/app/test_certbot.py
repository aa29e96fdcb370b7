"""What certbot keeps is read as certbot means it (its account.py, storage.py and renewal.py; trees as 5.8 leaves them)."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sniproxy.app.certbot import (
    MAX_TEXT_BYTES,
    BrokenLineage,
    CertbotError,
    Lineage,
    account,
    account_identities,
    hook_programs,
    lineages,
    read_renewal,
)
from sniproxy.bundle import generate_key, key_pem
from tests.support.certbot import SERVER, CertbotTree, snapshot

DAY = timedelta(days=1)

# As configobj 5.0.9, with which certbot writes, quotes these values; the last is from before it wrote archive_dir.
WRITTEN = """# renew_before_expiry = 30 days
version = 5.8.0
archive_dir = /etc/letsencrypt/archive/example.com

# Options used in the renewal process
[renewalparams]
renew_hook = 'systemctl reload haproxy, "x" # y'
pre_hook = "a, b"
post_hook = '''it's "q"'''
user_agent = '''multi
line "q"'''
pref_challs = dns-01,
webroot_path = /var/www/a b, "/v,w"
installer = None
manual_auth_hook = ""
server = https://acme-v02.api.letsencrypt.org/directory  # ours
quoted = "date +%s"
[[webroot_map]]
*.example.com = /var/www
"a.example" = /x
"""


@pytest.fixture
def tree(tmp_path):
    return CertbotTree(tmp_path / "letsencrypt")


def only(tree):
    (found,) = lineages(tree.root)
    return found


# ---------------------------------------------------------------------- renewal configurations


def test_a_renewal_configuration_is_read_as_it_is_written():
    """ConfigObj's format: quotes where a value has a comma, a hash or a quote, three of them for lines."""
    assert read_renewal(WRITTEN) == {
        "": {"version": "5.8.0", "archive_dir": "/etc/letsencrypt/archive/example.com"},
        "renewalparams": {
            "renew_hook": 'systemctl reload haproxy, "x" # y',
            "pre_hook": "a, b",
            "post_hook": """it's "q\"""",
            "user_agent": 'multi\nline "q"',
            "pref_challs": "dns-01,",
            "webroot_path": '/var/www/a b, "/v,w"',
            "installer": "None",
            "manual_auth_hook": "",
            "server": "https://acme-v02.api.letsencrypt.org/directory",
            "quoted": "date +%s",
        },
        "webroot_map": {"*.example.com": "/var/www", "a.example": "/x"},
    }


@pytest.mark.parametrize("text", ["", "nonsense\n", "[renewalparams\n", "= 3\n", "a = '''never\nending", "\0\ud800"])
def test_what_makes_no_sense_is_passed_over(text):
    """Whoever edited it by hand has a certificate all the same."""
    assert "" in read_renewal(text)


# ---------------------------------------------------------------------- lineages


def test_a_lineage(tree):
    """live/NAME has the newest; the renewal configuration says how it came to be."""
    bundle = tree.lineage("example.com", ("example.com", "www.example.com"), renew_hook="systemctl reload haproxy")
    found = only(tree)

    assert isinstance(found, Lineage)
    assert (found.name, found.bundle.chain) == ("example.com", bundle.chain)
    assert key_pem(found.bundle.key) == key_pem(bundle.key)
    assert (found.server, found.account, found.authenticator) == (SERVER, "0" * 32, "standalone")
    assert (found.hook("deploy"), found.hook("pre"), found.hook("post")) == ("systemctl reload haproxy", "", "")


@pytest.mark.parametrize("key_type", ["rsa-2048", "rsa-4096", "ecdsa-p256", "ecdsa-p384"])
def test_keys_of_every_kind(tree, key_type):
    """certbot's --key-type, --rsa-key-size and --elliptic-curve."""
    bundle = tree.lineage("example.com", key_type=key_type)

    assert key_pem(only(tree).bundle.key) == key_pem(bundle.key)


def test_lineages_in_alphabetical_order(tree):
    for name in ("b.example", "a.example", "a.example-0001"):
        tree.lineage(name)

    assert [found.name for found in lineages(tree.root)] == ["a.example", "a.example-0001", "b.example"]


def test_the_newest_of_a_lineage(tree):
    """archive/ has all there ever were."""
    tree.lineage("example.com", age=60 * DAY)
    newest = tree.lineage("example.com", age=DAY)

    assert only(tree).bundle.chain == newest.chain


@pytest.mark.parametrize("how", ["absolute", "missing", "dangling", "no live"])
def test_a_copy_whose_links_lead_nowhere(tree, tmp_path, how):
    """Then the highest number in archive/ counts."""
    bundles = [tree.lineage("example.com", age=(20 - n) * DAY, absolute=how == "absolute") for n in range(11)]
    copy = tmp_path / "copy"
    shutil.copytree(tree.root, copy, symlinks=True)
    shutil.rmtree(tree.root)
    if how == "missing":
        (copy / "live" / "example.com" / "privkey.pem").unlink()
    if how == "dangling":
        shutil.move(copy / "archive" / "example.com", copy / "archive" / "moved")
        shutil.copytree(copy / "archive" / "moved", copy / "archive" / "example.com")
        (copy / "live" / "example.com" / "fullchain.pem").unlink()
        (copy / "live" / "example.com" / "fullchain.pem").symlink_to("/nonexistent/fullchain9.pem")
    if how == "no live":
        shutil.rmtree(copy / "live")
    (found,) = lineages(copy)

    assert isinstance(found, Lineage)
    assert found.bundle.chain == bundles[-1].chain


def test_a_copy_in_which_links_are_files(tree, tmp_path):
    """cp -L, tar -h."""
    bundle = tree.lineage("example.com")
    shutil.copytree(tree.root, tmp_path / "copy", symlinks=False)
    (found,) = lineages(tmp_path / "copy")

    assert found.bundle.chain == bundle.chain


def test_a_key_that_is_used_again(tree):
    """--reuse-key: earlier versions linked privkey2.pem to privkey1.pem, and a copy may lack the link."""
    tree.lineage("example.com")
    archive = tree.root / "archive" / "example.com"
    shutil.copy(archive / "fullchain1.pem", archive / "fullchain2.pem")
    shutil.rmtree(tree.root / "live" / "example.com")

    assert isinstance(only(tree), Lineage)


def test_an_archive_of_another_name(tree):
    """archive_dir; certbot's own place may have moved, in a copy it has."""
    bundle = tree.lineage("example.com")
    shutil.move(tree.root / "archive" / "example.com", tree.root / "archive" / "elsewhere")
    path = tree.root / "renewal" / "example.com.conf"
    path.write_text(path.read_text().replace("/archive/example.com", "/archive/elsewhere"))

    assert only(tree).bundle.chain == bundle.chain


def test_a_lineage_without_a_renewal_configuration(tree):
    """The certificate is as good; where it came from is certbot's default."""
    bundle = tree.lineage("example.com")
    (tree.root / "renewal" / "example.com.conf").unlink()

    assert (only(tree).bundle.chain, only(tree).server, only(tree).account) == (bundle.chain, SERVER, "")


def broken(tree, what):
    """A tree with one lineage that is broken in this way, and what is said of it."""
    live, archive = tree.root / "live" / "example.com", tree.root / "archive" / "example.com"
    tree.lineage("example.com", other_key=generate_key("ecdsa-p256") if what == "another key" else None)
    match what:
        case "another key":
            return "the private key is not the one of the certificate"
        case "nothing but a configuration":
            shutil.rmtree(live)
            shutil.rmtree(archive)
            return f"{live}/privkey.pem: No such file or directory"
        case "no key":
            (archive / "privkey1.pem").unlink()
            return f"{archive}/privkey1.pem: No such file or directory"
        case "an empty certificate":
            (archive / "fullchain1.pem").write_bytes(b"")
            return "there is no certificate in it"
        case "a key cut off":
            path = archive / "privkey1.pem"
            path.write_bytes(path.read_bytes()[:100])
            return "the private key cannot be read; it must be PEM without a password"
        case "a directory":
            (archive / "privkey1.pem").unlink()
            (archive / "privkey1.pem").mkdir()
            return f"{live}/privkey.pem: Not a regular file"
        case "a configuration without end":
            (tree.root / "renewal" / "example.com.conf").write_bytes(b"#" * (MAX_TEXT_BYTES + 1))
            return f"{tree.root}/renewal/example.com.conf: File has more than {MAX_TEXT_BYTES} bytes"
        case _:
            raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    [
        "another key",
        "nothing but a configuration",
        "no key",
        "an empty certificate",
        "a key cut off",
        "a directory",
        "a configuration without end",
    ],
)
def test_a_lineage_that_is_broken_says_why(tree, what):
    """And the others are read all the same."""
    words = broken(tree, what)
    tree.lineage("other.example")
    first, second = lineages(tree.root)

    assert first == BrokenLineage(name="example.com", trouble=words)
    assert isinstance(second, Lineage)


@pytest.mark.parametrize(
    ("written", "server", "is_staging"),
    [
        pytest.param(None, SERVER, False, id="not written"),
        ("None", SERVER, False),
        ("https://acme-v01.api.letsencrypt.org/directory", SERVER, False),
        (SERVER, SERVER, False),
        ("https://acme.zerossl.com/v2/DV90", "https://acme.zerossl.com/v2/DV90", False),
        (
            "https://acme-staging-v02.api.letsencrypt.org/directory",
            "https://acme-staging-v02.api.letsencrypt.org/directory",
            True,
        ),
    ],
)
def test_where_it_was_ordered(tree, written, server, is_staging):
    """certbot's renewal._restore_str: the first version's URL, and none, stand for the default."""
    tree.lineage("example.com", server=written)

    assert (only(tree).server, only(tree).is_staging) == (server, is_staging)


@pytest.mark.parametrize(
    ("parameters", "uses_dns"),
    [
        ({"authenticator": "standalone"}, False),
        ({"authenticator": "webroot"}, False),
        ({"authenticator": "manual"}, False),
        ({"authenticator": "manual", "pref_challs": "dns-01,"}, True),
        ({"authenticator": "manual", "pref_challs": "http-01, dns-01"}, False),
        ({"authenticator": "dns-cloudflare"}, True),
        ({"authenticator": "dns_route53"}, True),
        ({"authenticator": "certbot-dns-cloudflare:dns-cloudflare"}, True),
    ],
)
def test_whether_names_were_proven_by_dns(tree, parameters, uses_dns):
    """By the plugin's name, or the preferred challenge; plugins once had their package before them."""
    tree.lineage("example.com", **parameters)

    assert only(tree).uses_dns is uses_dns


@pytest.mark.parametrize(
    ("key", "value", "hook"), [("renew_hook", "x", "x"), ("deploy_hook", "x", "x"), ("renew_hook", "None", "")]
)
def test_a_deploy_hook_is_kept_by_its_older_name(tree, key, value, hook):
    """--deploy-hook is renew_hook in the file."""
    tree.lineage("example.com", **{key: value})

    assert only(tree).hook("deploy") == hook


def test_programs_for_every_lineage(tree):
    """renewal-hooks; certbot leaves out what ends in a tilde (hooks.list_hooks)."""
    for name in ("deploy/50-haproxy", "deploy/10-mail", "deploy/old~", "pre/stop", "deploy/.swp"):
        (tree.root / "renewal-hooks" / name).touch(mode=0o755)
    programs = hook_programs(tree.root)

    assert {kind: [path.name for path in paths] for kind, paths in programs.items()} == {
        "pre": ["stop"],
        "deploy": ["10-mail", "50-haproxy"],
        "post": [],
    }


@pytest.mark.parametrize("there", [False, True])
def test_a_directory_that_is_not_certbots(tmp_path, there):
    """Said at once, so that nobody takes "nothing to do" for an answer."""
    root = tmp_path / "letsencrypt"
    if there:
        root.mkdir()

    with pytest.raises(CertbotError, match="is not certbot's"):
        lineages(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_is_not_for_us(tree):
    (tree.root / "live").chmod(0)

    with pytest.raises(CertbotError, match="files are root's"):
        lineages(tree.root)


# ---------------------------------------------------------------------- accounts


@pytest.mark.parametrize("key_type", ["rsa-2048", "rsa-4096", "ecdsa-p256", "ecdsa-p384"])
def test_an_account(tree, key_type):
    """private_key.json is a JWK (RFC 7517), and regr.json has the account's URL."""
    key = generate_key(key_type)
    identity = tree.account(key)
    found = account(tree.root, SERVER, identity)

    assert key_pem(found.key) == key_pem(key)
    assert found.url == "https://acme-v02.api.letsencrypt.org/acme/acct/1234567"
    assert (found.identity, found.directory, found.contact) == (identity, SERVER, ())


def test_an_account_shows_nothing_of_its_key(tree):
    """No private key may ever reach a log."""
    assert "key" not in repr(account(tree.root, SERVER, tree.account()))


def test_an_account_of_an_older_certbot(tree):
    """regr.json once had the whole registration; the URL may be none that the second version of the protocol has."""
    identity = tree.account(
        uri="https://acme-v01.api.letsencrypt.org/acme/reg/1234567", body={"contact": ["mailto:admin@example.com"]}
    )
    found = account(tree.root, SERVER, identity)

    assert (found.url, found.contact) == (None, ("mailto:admin@example.com",))


@pytest.mark.parametrize("content", [None, "", "[]", '{"body": 3, "uri": 7}', "{"])
def test_an_account_whose_url_is_not_known(tree, content):
    """It can be found by its key (RFC 8555 section 7.3.1)."""
    identity = tree.account()
    path = tree.root / "accounts" / "acme-v02.api.letsencrypt.org" / "directory" / identity / "regr.json"
    path.unlink()
    if content is not None:
        path.write_text(content)

    assert account(tree.root, SERVER, identity).url is None


def test_accounts_the_newest_first(tree):
    """meta.json has when each was made; one that does not say is the oldest."""
    old = tree.account(created="2016-01-01T00:00:00Z")
    silent = tree.account(created="")
    new = tree.account(created="2026-01-01T00:00:00Z")

    assert account_identities(tree.root, SERVER) == [new, old, silent]


def test_accounts_of_another_directory_are_others(tree):
    """accounts/ has the directory's host and path, its port as well."""
    here = tree.account(server="https://ca.internal:9000/acme/directory")
    tree.account()

    assert account_identities(tree.root, "https://ca.internal:9000/acme/directory") == [here]
    assert account_identities(tree.root, "https://nobody.example/directory") == []


@pytest.mark.parametrize("linked", [True, False])
def test_accounts_from_the_first_version_of_the_protocol(tree, linked):
    """certbot links them to where they were (LE_REUSE_SERVERS); in a copy the link may lead nowhere."""
    identity = tree.account(server="https://acme-v01.api.letsencrypt.org/directory")
    (tree.root / "accounts" / "acme-v02.api.letsencrypt.org").mkdir()
    target = tree.root / "accounts" / "acme-v01.api.letsencrypt.org" / "directory"
    (tree.root / "accounts" / "acme-v02.api.letsencrypt.org" / "directory").symlink_to(
        target if linked else "/nonexistent"
    )

    assert account_identities(tree.root, SERVER) == [identity]
    assert account(tree.root, SERVER, identity).identity == identity


def test_an_account_that_is_not_there(tree):
    with pytest.raises(CertbotError, match=r"there is no account 0000 in .*/directory"):
        account(tree.root, SERVER, "0000")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "is no private key"),
        ('{"kty": "oct", "k": "c2VjcmV0"}', "is no private key"),
        ('{"kty": "EC", "crv": "P-256", "x": "c2VjcmV0", "y": "c2VjcmV0", "d": "c2VjcmV0"}', "is no private key"),
        ('{"kty": "RSA", "n": "c2VjcmV0", "e": "AQAB"}', "is no private key"),
        ('{"kty": "RSA", "n": "!", "e": "AQAB", "d": "c2VjcmV0"}', "is no private key"),
        ('{"kty": "c2VjcmV0"}', "is no private key"),
        ('{"kty": ["c2VjcmV0"]}', "is no private key"),
    ],
)
def test_a_key_that_cannot_be_read_is_not_shown(tree, content, words):
    """The error is ours, and quotes nothing of the file."""
    identity = tree.account()
    path = tree.root / "accounts" / "acme-v02.api.letsencrypt.org" / "directory" / identity / "private_key.json"
    path.unlink()
    if content is not None:
        path.write_text(content)

    with pytest.raises(CertbotError, match=words) as caught:
        account(tree.root, SERVER, identity)
    assert "c2VjcmV0" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_key_on_a_curve_that_cas_do_not_take(tree):
    """RFC 8555 section 6.2 requires ES256 of servers; P-521 is nobody's choice."""
    identity = tree.account(ec.generate_private_key(ec.SECP521R1()))

    with pytest.raises(CertbotError, match="secp521r1"):
        account(tree.root, SERVER, identity)


def test_nothing_is_touched(tree):
    """certbot may go on as before."""
    tree.lineage("example.com")
    identity = tree.account()
    before = snapshot(tree.root)
    lineages(tree.root)
    hook_programs(tree.root)
    account_identities(tree.root, SERVER)
    account(tree.root, SERVER, identity)

    assert snapshot(tree.root) == before
