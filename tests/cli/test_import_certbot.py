"""`sniproxy import-certbot DIR`: what it prints and how it exits (contract, section 1)."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import tempfile
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest

from sniproxy.acme.account import Account, AccountSettings
from sniproxy.acme.client import Client
from sniproxy.acme.store import Store
from sniproxy.bundle import generate_key
from tests.support.certbot import CertbotTree, snapshot, utc_now
from tests.support.origins import NamedServer
from tests.support.pebble import AVAILABLE, MISSING, ChallengeDns, Pebble
from tests.support.processes import LOCALHOST, free_port

DAY = timedelta(days=1)


@pytest.fixture
def directory():
    """One that other users may go through, for what is written as one of them."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def tree(directory):
    return CertbotTree(directory / "letsencrypt", now=utc_now())


@pytest.fixture
def config(directory):
    """A configuration with these names, each of a certificate of its own."""

    def write(*names, proxy="", admin=""):
        path = directory / "sniproxy.toml"
        sections = "".join(f'\n[[certificates]]\nnames = ["{name}"]\n' for name in names)
        path.write_text(
            f'[proxy]\n{proxy}\n[backends.haproxy]\nservers = ["127.0.0.1:4443"]\n'
            f'[admin]\nlisten = "{admin}"\ncontrol_socket = ""\n'
            f'[acme]\nagree_to_terms = true\nstate_dir = "{directory}/state"\n{sections}'
        )
        return path

    return write


def stored(directory, name):
    return Store(directory / "state", pytest.fail).certificate(name).current()


def test_all_of_it(sniproxy, tree, config, directory):
    """Exit status 0: done. Data to standard output, and there is none; the rest to standard error, a line each."""
    identity = tree.account()
    bundle = tree.lineage("example.com", account=identity)
    result = sniproxy("import-certbot", "-c", config("example.com"), tree.root)

    assert (result.exit_code, result.stdout) == (0, "")
    first, second, third = result.stderr.splitlines()
    assert first == f"account {identity} at https://acme-v02.api.letsencrypt.org/directory: taken over"
    assert second.startswith("example.com: taken over from example.com: serial ")
    assert third.startswith("certbot still renews them: stop that")
    assert stored(directory, "example.com").pem == bundle.pem


@pytest.mark.skipif(not AVAILABLE, reason=MISSING)
@pytest.mark.parametrize("key_type", ["rsa-2048", "ecdsa-p256"])
def test_the_ca_knows_the_account(sniproxy, tree, directory, programs, key_type):
    """A real CA takes orders signed with the key that was taken over, from the account that certbot had."""
    pebble = programs.start(Pebble(directory, dns=programs.start(ChallengeDns(directory))))
    key = generate_key(key_type)

    async def certbots() -> str:
        client = Client(pebble.directory_url, key, ca_file=pebble.ca_file)
        try:
            return (await client.create_account(contact=(), agree_to_terms=True)).url
        finally:
            await client.close()

    async def ours() -> tuple[str | None, str]:
        settings = AccountSettings(directory=pebble.directory_url, ca_file=pebble.ca_file)
        account = Account(settings, Store(directory / "state", pytest.fail).account(pebble.directory_url))
        try:
            client = await account.client()
            return client.account_url, (await client.new_order(["www.test"])).status
        finally:
            await account.close()

    url = asyncio.run(certbots())
    tree.account(key, server=pebble.directory_url, uri=url)
    path = directory / "sniproxy.toml"
    path.write_text(
        f'[backends.haproxy]\nservers = ["127.0.0.1:4443"]\n[admin]\nlisten = ""\ncontrol_socket = ""\n'
        f'[acme]\ndirectory = "{pebble.directory_url}"\nstate_dir = "{directory}/state"\n'
    )
    result = sniproxy("import-certbot", "-c", path, tree.root)

    assert (result.exit_code, result.stdout) == (0, "")
    assert asyncio.run(ours()) == (url, "pending")


def test_certs_finds_it_afterwards(sniproxy, tree, config):
    """It is managed from now on."""
    bundle = tree.lineage("example.com")
    path = config("example.com")
    sniproxy("import-certbot", "-c", path, tree.root)
    (row,) = json.loads(sniproxy("certs", "-c", path, "--json").stdout)

    assert (row["serial"], row["reason"], row["last_error"]) == (bundle.leaf.serial, "lifetime", None)


def test_what_is_missing_in_the_configuration(sniproxy, tree, config, directory):
    """To standard output, ready to be added; then it is carried over."""
    tree.lineage("example.com")
    tree.lineage("other.example", key_type="rsa-2048")
    path = config("example.com")
    result = sniproxy("import-certbot", "-c", path, tree.root)

    assert result.exit_code == 0
    assert tomllib.loads(result.stdout) == {
        "certificates": [{"name": "other.example", "names": ["other.example"], "key_type": "rsa-2048"}]
    }
    assert f"what to do: add the above to {path}, and run this again before" in result.stderr
    path.write_text(path.read_text() + result.stdout)
    again = sniproxy("import-certbot", "-c", path, tree.root)
    assert (again.exit_code, again.stdout) == (0, "")
    assert "example.com: already there" in again.stderr
    assert stored(directory, "other.example") is not None


def test_a_dry_run(sniproxy, tree, config, directory):
    """--dry-run shows only."""
    tree.lineage("example.com")
    before = snapshot(tree.root)
    result = sniproxy("import-certbot", "-c", config("example.com"), tree.root, "--dry-run")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "example.com: would be taken over from example.com" in result.stderr
    assert result.stderr.endswith("nothing was changed: this was a dry run\n")
    assert not (directory / "state").exists()
    assert snapshot(tree.root) == before


def test_something_failed(sniproxy, tree, config, directory):
    """Exit status 1, with the rest done."""
    tree.lineage("broken.example", other_key=generate_key("ecdsa-p256"))
    tree.lineage("example.com")
    result = sniproxy("import-certbot", "-c", config("example.com"), tree.root)

    assert result.exit_code == 1
    assert "broken.example: left out: the private key is not the one of the certificate" in result.stderr
    assert stored(directory, "example.com") is not None


def test_what_is_left_out_is_no_failure(sniproxy, tree, config):
    """It could not be had in the first place."""
    tree.lineage("wild.example", ("*.wild.example",))
    tree.lineage("over.example", age=91 * DAY, lifetime=90 * DAY)
    result = sniproxy("import-certbot", "-c", config("example.com"), tree.root)

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.count(": left out: ") == 2


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_that_is_not_certbots(sniproxy, tmp_path, config, there):
    """Exit status 1, one line."""
    root = tmp_path / "letsencrypt"
    if there:
        root.mkdir()
    result = sniproxy("import-certbot", "-c", config(), root)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"{root} is not certbot's: there is no live, renewal or accounts in it\n"


def test_a_bad_configuration(sniproxy, tree, mistaken):
    """Exit status 2, before anything is looked at."""
    result = sniproxy("import-certbot", "-c", mistaken, tree.root)

    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 5


def test_a_directory_is_needed(sniproxy, config):
    """Exit status 2: bad arguments."""
    assert sniproxy("import-certbot", "-c", config()).exit_code == 2


def test_a_proxy_that_is_running(sniproxy, tree, config):
    """It looks at the store by itself; what it knows already takes more."""
    tree.lineage("example.com")
    port = free_port()
    page = NamedServer("HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\nsniproxy_build_info 1", port)
    try:
        result = sniproxy("import-certbot", "-c", config("example.com", admin=f"{LOCALHOST}:{port}"), tree.root)
    finally:
        page.close()

    assert result.exit_code == 0
    assert "sniproxy is running: it finds the certificates within a minute" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as certbot's directory does")
def test_it_is_written_as_the_user_who_will_read_it(sniproxy, tree, config, directory):
    """Read as root, for nobody else may; the proxy becomes another user."""
    tree.account()
    tree.lineage("example.com")
    result = sniproxy("import-certbot", "-c", config("example.com", proxy='user = "nobody"'), tree.root)

    assert result.exit_code == 0
    nobody = pwd.getpwnam("nobody").pw_uid
    found = [directory / "state", *(directory / "state").rglob("*")]
    assert {path.stat().st_uid for path in found} == {nobody}
    assert {path.stat().st_mode & 0o077 for path in found} == {0}
    assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_store_that_is_somebody_elses(sniproxy, tree, config, directory):
    """Exit status 1, saying whose it is."""
    (directory / "state").mkdir(mode=0o700)
    tree.lineage("example.com")
    result = sniproxy("import-certbot", "-c", config("example.com", proxy='user = "nobody"'), tree.root)

    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{directory}/state" in result.stderr
