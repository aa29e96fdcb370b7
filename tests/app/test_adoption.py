"""What of certbot's goes into the store, so that nothing is ordered again, and what is told of the rest."""

from __future__ import annotations

import os
import pwd
import tomllib
from datetime import timedelta

import pytest

from sniproxy.acme.store import CertificateState, PendingOrder, Store
from sniproxy.app.adoption import carry_over, examine, key_type, make_state_dir
from sniproxy.app.certificates import stored_statuses
from sniproxy.bundle import Bundle, generate_key, key_pem
from sniproxy.config import parse
from sniproxy.errors import StoreError
from tests.support.certbot import SERVER, CertbotTree, snapshot, utc_now
from tests.support.certificates import NOW, certificate

DAY = timedelta(days=1)
STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
ZEROSSL = "https://acme.zerossl.com/v2/DV90"


@pytest.fixture
def tree(tmp_path):
    return CertbotTree(tmp_path / "letsencrypt")


@pytest.fixture
def config(tmp_path):
    """A configuration with these [[certificates]], each the lines of one."""

    def make(*certificates, acme="", directory="letsencrypt"):
        sections = "".join(f"[[certificates]]\n{lines}\n" for lines in certificates)
        acme_section = (
            f'[acme]\ndirectory = "{directory}"\nagree_to_terms = true\nstate_dir = "{tmp_path}/state"\n{acme}\n'
            if acme is not None
            else ""
        )
        return parse(f'[backends.haproxy]\nservers = ["127.0.0.1:4443"]\n{acme_section}{sections}', file="x.toml")

    return make


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "state", warn=pytest.fail)


def entry(*names, **more):
    return "\n".join([f"names = {list(names)}", *(f'{key} = "{value}"' for key, value in more.items())])


def take_over(tree, config, *, dry_run=False, now=NOW):
    """Everything that is told, and whether anything has failed."""
    takeover = examine(tree.root, config, now)
    remarks = [*takeover.remarks, *carry_over(takeover, config, now, dry_run=dry_run)]
    return [remark.text for remark in remarks], any(remark.is_failure for remark in remarks)


def about(name, said):
    return [text for text in said if text.startswith(f"{name}: ")]


# ---------------------------------------------------------------------- certificates


def test_a_lineage_goes_to_the_entry_for_the_same_names(tree, config, store):
    """Whatever the order, and whatever either is called."""
    bundle = tree.lineage("example.com-0001", ("example.com", "www.example.com"))
    said, failed = take_over(tree, config(entry("www.example.com", "example.com", name="web")))

    assert not failed
    assert about("web", said) == [f"web: taken over from example.com-0001: serial {bundle.leaf.serial}, 89 days left"]
    stored = store.certificate("web").current()
    assert stored.pem == bundle.pem


def test_nothing_is_ordered_for_it(tree, config, store):
    """The whole point: it is due when its lifetime says so, or the CA, and not on the day of the switch."""
    tree.now = utc_now()
    bundle = tree.lineage("example.com", age=10 * DAY, lifetime=90 * DAY)
    settings = config(entry("example.com"))
    take_over(tree, settings, now=tree.now)
    (status,) = stored_statuses(settings)

    assert (status.reason, status.serial) == ("lifetime", bundle.leaf.serial)
    assert status.renew_at > tree.now + 49 * DAY
    state = store.certificate("example.com").state()
    assert (state.names, state.issued_at) == (("example.com",), bundle.leaf.not_before)


def test_a_second_time_it_is_there_already(tree, config, store):
    """May be repeated; the store is as it was."""
    tree.lineage("example.com")
    tree.account()
    settings = config(entry("example.com"))
    take_over(tree, settings)
    before = snapshot(store.root)
    said, failed = take_over(tree, settings)

    assert not failed
    assert about("example.com", said) == ["example.com: already there"]
    assert any("already there" in text for text in said if text.startswith("account "))
    after = snapshot(store.root)
    assert {name: entry[:2] for name, entry in after.items()} == {name: entry[:2] for name, entry in before.items()}


def test_a_successor_of_certbots_follows(tree, config, store):
    """It went on renewing after the first time."""
    settings = config(entry("example.com"))
    tree.lineage("example.com", age=60 * DAY)
    take_over(tree, settings)
    successor = tree.lineage("example.com", age=DAY)
    take_over(tree, settings)

    assert store.certificate("example.com").current().pem == successor.pem
    assert store.certificate("example.com").generations() == [2, 1]


def issued(store, name, names, *, age, directory=SERVER, ends=90):
    """As if sniproxy had obtained it."""
    key = generate_key("ecdsa-p256")
    bundle = Bundle(key, (certificate(names, key=key, begins=NOW - age, ends=NOW - age + ends * DAY),))
    files = store.certificate(name)
    files.save(bundle)
    files.save_state(CertificateState(names=tuple(names), directory=directory))
    return bundle


@pytest.mark.parametrize("age", [0, 10])
def test_what_is_newer_in_the_store_is_never_replaced(tree, config, store, age):
    """Nor what is of the same day."""
    tree.lineage("example.com", age=10 * DAY)
    ours = issued(store, "example.com", ["example.com"], age=age * DAY)
    said, failed = take_over(tree, config(entry("example.com")))

    assert not failed
    assert about("example.com", said)[0].startswith("example.com: the store has a newer one than example.com, until ")
    assert store.certificate("example.com").current().pem == ours.pem


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["example.com"], {"age": 20 * DAY}),
        (["example.com"], {"age": 5 * DAY, "ends": 4}),
        (["example.com", "old.example.com"], {"age": DAY}),
        (["example.com"], {"age": DAY, "directory": STAGING}),
    ],
    ids=["older", "expired", "for other names", "of a trial with another CA"],
)
def test_what_would_be_ordered_anew_is_replaced(tree, config, store, names, options):
    """An older one, and whatever the next look would have ordered another for."""
    bundle = tree.lineage("example.com", age=10 * DAY)
    issued(store, "example.com", names, **options)
    take_over(tree, config(entry("example.com")))

    assert store.certificate("example.com").current().pem == bundle.pem
    assert store.certificate("example.com").state().directory == SERVER


def test_an_order_under_way_is_forgotten(tree, config, store):
    """It would replace the certificate as soon as it came to its end."""
    bundle = tree.lineage("example.com")
    files = store.certificate("example.com")
    files.save_order(PendingOrder(url="https://ca.example/order/1", key=bundle.key, names=(), directory=SERVER))
    take_over(tree, config(entry("example.com")))

    assert files.order() is None


def test_one_that_is_being_ordered_is_left_alone(tree, config, store):
    """Whoever orders holds the lock."""
    tree.lineage("example.com")
    with store.certificate("example.com").lock():
        said, failed = take_over(tree, config(entry("example.com")))

    assert failed
    assert "ordering at this moment" in about("example.com", said)[0]
    assert store.certificate("example.com").current() is None


def test_the_failures_of_the_past_are_forgotten(tree, config, store):
    """A back-off of the time before must not hold up the next renewal."""
    tree.lineage("example.com")
    store.certificate("example.com").save_state(
        CertificateState(failures=9, last_error="no", next_attempt=NOW + DAY, directory=SERVER)
    )
    take_over(tree, config(entry("example.com")))

    assert (
        store.certificate("example.com").state().failures,
        store.certificate("example.com").state().next_attempt,
    ) == (0, None)


def test_of_two_for_the_same_names_the_newest(tree, config, store):
    """The other is told of."""
    tree.lineage("example.com", age=30 * DAY)
    newer = tree.lineage("example.com-0001", ("example.com",), age=DAY)
    said, _ = take_over(tree, config(entry("example.com")))

    assert store.certificate("example.com").current().pem == newer.pem
    assert "example.com: left out: example.com-0001 is for the same names" in said


def test_of_two_for_the_same_names_the_one_with_the_right_key(tree, config, store):
    """RSA beside ECDSA, each to its own entry."""
    ecdsa = tree.lineage("example.com", age=30 * DAY)
    rsa = tree.lineage("example.com-rsa", ("example.com",), key_type="rsa-2048", age=DAY)
    take_over(tree, config(entry("example.com"), entry("example.com", name="example.com.rsa", key_type="rsa-2048")))

    assert store.certificate("example.com").current().pem == ecdsa.pem
    assert store.certificate("example.com.rsa").current().pem == rsa.pem


@pytest.mark.parametrize("kind", ["rsa-2048", "rsa-3072", "ecdsa-p384"])
def test_another_key_type_is_fine_and_told_of(tree, config, store, kind):
    """It is as good until it is renewed."""
    bundle = tree.lineage("example.com", key_type=kind)
    said, failed = take_over(tree, config(entry("example.com")))

    assert not failed
    assert f"example.com: its key is {kind}; the next one is ecdsa-p256, as configured" in said
    assert key_pem(store.certificate("example.com").current().key) == key_pem(bundle.key)
    assert key_type(bundle) == kind


def test_an_address_is_a_name(tree, config, store):
    """RFC 8738."""
    bundle = tree.lineage("192.0.2.1", ("192.0.2.1", "2001:db8::1"))
    take_over(tree, config(entry("2001:0db8::1", "192.0.2.1", name="addresses")))

    assert store.certificate("addresses").current().pem == bundle.pem


# ---------------------------------------------------------------------- of another CA


def test_one_of_another_ca_is_in_time_until_it_is_due(tree, config, store):
    """Its CA is not known in the store: as ours it would be `replaces` for a stranger, as another's due at once."""
    tree.now = utc_now()
    bundle = tree.lineage("example.com", server=ZEROSSL)
    settings = config(entry("example.com"))
    said, failed = take_over(tree, settings, now=tree.now)

    assert not failed
    assert [(status.serial, status.reason) for status in stored_statuses(settings)] == [
        (bundle.leaf.serial, "lifetime")
    ]
    assert store.certificate("example.com").state().directory == ""
    text = (
        f"1 certificate is from {ZEROSSL}: the account there is not that of acme.directory, which issues the next ones"
    )
    assert text in said


def test_one_to_try_things_out_is_left_out(tree, config, store):
    """Nobody trusts it, so nobody wants it kept until it is due."""
    tree.lineage("example.com", server=STAGING)
    said, failed = take_over(tree, config(entry("example.com")))

    assert not failed
    assert said[0] == f"example.com: left out: from {STAGING}, which is to try things out, and trusted by nobody"
    assert store.certificate("example.com").current() is None


def test_one_to_try_things_out_is_fine_where_that_is_what_is_done(tree, config, store):
    """With the same directory in the configuration."""
    bundle = tree.lineage("example.com", server=STAGING)
    take_over(tree, config(entry("example.com"), directory="letsencrypt-staging"))

    assert store.certificate("example.com").current().pem == bundle.pem


# ---------------------------------------------------------------------- what cannot be carried over


def test_a_wildcard_is_left_out(tree, config):
    """Only DNS can prove one (RFC 8555 section 8.4), and no challenge here is that."""
    tree.lineage("example.com", ("example.com", "*.example.com"), authenticator="dns-cloudflare")
    said, failed = take_over(tree, config())

    assert not failed
    assert said[0] == (
        "example.com: left out: no challenge here can prove *.example.com; list each name, or leave it to certbot"
    )
    assert examine(tree.root, config(), NOW).toml == ""


def test_one_that_is_over_is_left_out(tree, config, store):
    """There is nothing to keep; another is ordered."""
    tree.lineage("example.com", age=91 * DAY, lifetime=90 * DAY)
    said, failed = take_over(tree, config(entry("example.com")))

    assert not failed
    assert said[0] == "example.com: left out: expired at 2026-11-24 12:00 UTC"
    assert store.certificate("example.com").current() is None


def test_one_that_is_broken_is_a_failure(tree, config, store):
    """It should have been carried over, so somebody has to know."""
    tree.lineage("example.com", other_key=generate_key("ecdsa-p256"))
    said, failed = take_over(tree, config(entry("example.com")))

    assert failed
    assert said[0] == "example.com: left out: the private key is not the one of the certificate"


def test_a_chain_that_does_not_hold_is_a_failure(tree, config):
    """HAProxy would serve it, and clients would not take it."""
    tree.lineage("example.com")
    other = CertbotTree(tree.root.parent / "other").lineage("example.com")
    path = tree.root / "archive" / "example.com" / "fullchain1.pem"
    leaf = path.read_bytes().split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    path.write_bytes(leaf + other.pem.split(b"-----END CERTIFICATE-----\n")[1] + b"-----END CERTIFICATE-----\n")
    said, failed = take_over(tree, config(entry("example.com")))

    assert failed
    assert "chain does not hold" in said[0]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"authenticator": "dns-route53"}, "example.com: names were proven by DNS; here that takes tls-alpn-01 or http-01, so they have to point to this machine"),
        ({"authenticator": "manual"}, "example.com: names were proven by hand; here that is done by tls-alpn-01 or http-01, and by itself"),
        ({"authenticator": "webroot"}, "example.com: webroot is not needed: validations are answered by the proxy itself"),
        ({"authenticator": "nginx", "installer": "nginx"}, "example.com: what certbot wrote into nginx's or Apache's configuration stays there"),
        ({"installer": "apache"}, "example.com: what certbot wrote into nginx's or Apache's configuration stays there"),
        ({"reuse_key": "True"}, "example.com: the key was used again for each certificate (reuse_key); here each has its own: mind what pins it (TLSA)"),
        ({"must_staple": "True"}, "example.com: must_staple is not asked for: CAs of the web no longer do that"),
        ({"autorenew": "False"}, "example.com: was not renewed by certbot (autorenew = False); here it is"),
        ({"preferred_chain": "ISRG Root X2"}, 'example.com: its chain was to end at "ISRG Root X2"; that is acme.preferred_chain here'),
        ({"required_profile": "shortlived"}, 'example.com: its profile was "shortlived"; the next one\'s is as configured'),
        ({"pre_hook": "systemctl stop haproxy"}, "example.com: pre hook not carried over: systemctl stop haproxy (nothing has to be stopped for a validation)"),
        ({"post_hook": "systemctl start haproxy"}, "example.com: post hook not carried over: systemctl start haproxy (nothing has to be started again; what else it does goes into [hooks], on_renewed)"),
        ({"renew_hook": "'cat a, b'"}, "example.com: deploy hook not carried over: cat a, b (HAProxy gets certificates without it; what else it does goes into [hooks], on_renewed)"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_told_of(tree, config, store, parameters, words):
    """A line each; the certificate is carried over all the same."""
    bundle = tree.lineage("example.com", **parameters)
    tree.account()
    said, failed = take_over(tree, config(entry("example.com")))

    assert not failed
    assert said[0] == words
    assert store.certificate("example.com").current().pem == bundle.pem


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"installer": "None", "pre_hook": "None", "reuse_key": "False", "preferred_chain": "None"},
        {"autorenew": "True", "preferred_profile": "None"},
    ],
)
def test_where_nothing_is_lost_nothing_is_told(tree, config, parameters):
    """certbot writes None and False, too."""
    tree.account()
    tree.lineage("example.com", **parameters)
    said, _ = take_over(tree, config(entry("example.com")))

    assert [text.partition(":")[2].split()[0] for text in about("example.com", said)] == ["taken"]
    assert len(said) == 2


def test_a_hook_of_many_is_told_of_once(tree, config):
    """Most have the same one."""
    for name in ("a.example", "b.example"):
        tree.lineage(name, renew_hook="systemctl reload haproxy")
    said, _ = take_over(tree, config())

    assert [text.partition(" (")[0] for text in said if "hook" in text] == [
        "a.example, b.example: deploy hook not carried over: systemctl reload haproxy"
    ]


def test_programs_for_every_lineage_are_told_of(tree, config):
    """renewal-hooks."""
    path = tree.root / "renewal-hooks" / "deploy" / "50-haproxy"
    path.touch(mode=0o755)
    said, _ = take_over(tree, config())

    assert any(text.startswith(f"{path}: deploy hook not carried over (") for text in said)


def test_each_remark_is_one_line(tree, config):
    """Whatever stands in a configuration."""
    tree.lineage("example.com", renew_hook="'''a\nb\x1b[2J'''")

    assert all(text.isprintable() for text in take_over(tree, config())[0])


# ---------------------------------------------------------------------- the account


def test_the_account_is_taken_over(tree, config, store):
    """With its URL, so that the CA is not even asked for it."""
    key = generate_key("rsa-2048")
    identity = tree.account(key)
    tree.lineage("example.com", account=identity)
    said, failed = take_over(tree, config(entry("example.com")))

    assert not failed
    assert f"account {identity} at {SERVER}: taken over" in said
    stored = store.account(SERVER).load()
    assert key_pem(stored.key) == key_pem(key)
    assert stored.url == "https://acme-v02.api.letsencrypt.org/acme/acct/1234567"


def test_of_several_accounts_the_one_that_was_used(tree, config, store):
    """Whichever is newer; the others are told of."""
    key = generate_key("ecdsa-p256")
    used = tree.account(key, created="2020-01-01T00:00:00Z")
    other = tree.account(created="2026-01-01T00:00:00Z")
    tree.lineage("example.com", account=used)
    said, _ = take_over(tree, config(entry("example.com")))

    assert f"account {other}: left out: there is one account to a directory" in said
    assert key_pem(store.account(SERVER).load().key) == key_pem(key)


def test_an_account_of_ours_is_never_replaced(tree, config, store):
    """It has issued already."""
    ours = generate_key("ecdsa-p256")
    store.account(SERVER).save(ours, "https://acme-v02.api.letsencrypt.org/acme/acct/7", ())
    identity = tree.account()
    said, failed = take_over(tree, config())

    assert not failed
    assert f"account {identity} at {SERVER}: left out: the store has another account there already" in said
    assert key_pem(store.account(SERVER).load().key) == key_pem(ours)


def test_the_url_is_added_to_a_key_that_is_there(tree, config, store):
    """After a crash between the two."""
    key = generate_key("ecdsa-p256")
    store.account(SERVER).save(key, None, ())
    tree.account(key)
    take_over(tree, config())

    assert store.account(SERVER).load().url == "https://acme-v02.api.letsencrypt.org/acme/acct/1234567"


def test_an_account_elsewhere_is_left_out(tree, config, store):
    """Only the one at our directory is of use."""
    tree.account(server=ZEROSSL)
    tree.lineage("example.com", server=ZEROSSL)
    said, failed = take_over(tree, config(entry("example.com")))

    assert not failed
    assert f"no account at {SERVER}: there will be a new one" in said
    assert store.account(SERVER).load() is None


def test_an_account_that_is_broken_is_a_failure(tree, config, store):
    """The certificates are carried over all the same."""
    identity = tree.account()
    place = tree.root / "accounts" / "acme-v02.api.letsencrypt.org" / "directory" / identity
    (place / "private_key.json").unlink()
    tree.lineage("example.com")
    said, failed = take_over(tree, config(entry("example.com")))

    assert failed
    assert any(text.startswith("account: left out: ") for text in said)
    assert store.certificate("example.com").current() is not None


def test_an_account_that_is_in_use_at_this_moment(tree, config, store):
    """Whoever makes one holds the lock."""
    tree.account()
    with store.account(SERVER).lock():
        said, failed = take_over(tree, config())

    assert failed
    assert any("ordering at this moment" in text for text in said)


# ---------------------------------------------------------------------- what is missing in the configuration


def test_what_is_missing_is_printed_as_the_configuration_has_it(tree, config):
    """Ready to be added, with name and key type; then it is carried over."""
    tree.lineage("example.com", ("www.example.com", "example.com"))
    tree.lineage("rsa.example", key_type="rsa-4096", required_profile="tlsserver")
    toml = examine(tree.root, config(entry("other.example")), NOW).toml

    assert tomllib.loads(toml) == {
        "certificates": [
            {"name": "example.com", "names": ["example.com", "www.example.com"], "key_type": "ecdsa-p256"},
            {"name": "rsa.example", "names": ["rsa.example"], "key_type": "rsa-4096", "profile": "tlsserver"},
        ]
    }
    both = parse(f'[backends.haproxy]\nservers = ["127.0.0.1:1"]\n[acme]\nagree_to_terms = true\n{toml}', file="x.toml")
    takeover = examine(tree.root, both, NOW)
    assert (takeover.toml, len(takeover.certificates)) == ("", 2)
    assert not [remark.text for remark in takeover.remarks if "next one" in remark.text]


def test_without_an_acme_section_that_is_printed_too(tree, config):
    """Nobody can agree to the CA's terms for the operator."""
    tree.lineage("example.com")
    toml = examine(tree.root, config(acme=None), NOW).toml

    assert tomllib.loads(toml)["acme"] == {"directory": "letsencrypt", "agree_to_terms": False}
    assert list(carry_over(examine(tree.root, config(acme=None), NOW), config(acme=None), NOW, dry_run=False)) == []


def test_a_directory_that_has_no_name_is_printed_as_it_is(tree, config):
    tree.lineage("example.com", server=ZEROSSL)

    assert tomllib.loads(examine(tree.root, config(acme=None), NOW).toml)["acme"]["directory"] == ZEROSSL


def test_names_that_are_almost_those_of_an_entry(tree, config):
    """A second entry for the same name is not what was meant; the difference is told."""
    tree.lineage("example.com", ("example.com", "old.example.com"))
    settings = config(entry("example.com", "new.example.com"))
    said, failed = take_over(tree, settings)

    assert not failed
    assert said[0] == (
        "example.com: left out: it is for example.com, old.example.com, and example.com in the configuration for "
        "example.com, new.example.com; with the same names it could be taken over"
    )
    assert examine(tree.root, settings, NOW).toml == ""


def test_a_name_that_is_taken_gets_an_ending(tree, config):
    """No two certificates are kept in one file."""
    tree.lineage("web", ("a.example",))
    toml = examine(tree.root, config(entry("b.example", name="web")), NOW).toml

    assert tomllib.loads(toml)["certificates"][0]["name"] == "web-certbot"


def test_a_name_that_cannot_name_a_file(tree, config):
    """The first of its names then."""
    tree.lineage("my site", ("a.example",))

    assert tomllib.loads(examine(tree.root, config(), NOW).toml)["certificates"][0]["name"] == "a.example"


# ---------------------------------------------------------------------- dry runs, rights


def test_a_dry_run_changes_nothing(tree, config, store):
    """Neither here nor there; not even a directory is made."""
    tree.lineage("example.com")
    identity = tree.account()
    said, failed = take_over(tree, config(entry("example.com")), dry_run=True)

    assert not failed
    assert f"account {identity} at {SERVER}: would be taken over" in said
    assert about("example.com", said)[0].startswith("example.com: would be taken over from example.com: serial ")
    assert not store.root.exists()


def test_a_dry_run_tells_what_is_there(tree, config):
    """As the second time would."""
    tree.lineage("example.com")
    settings = config(entry("example.com"))
    take_over(tree, settings)

    assert about("example.com", take_over(tree, settings, dry_run=True)[0]) == ["example.com: already there"]


def test_certbots_directory_is_not_touched(tree, config):
    """certbot may go on as before."""
    tree.lineage("example.com")
    tree.account()
    before = snapshot(tree.root)
    take_over(tree, config(entry("example.com")))

    assert snapshot(tree.root) == before


def test_a_store_that_cannot_be_used_is_a_failure(tree, config, store):
    """With what to do about it."""
    tree.lineage("example.com")
    store.root.write_text("a file")
    said, failed = take_over(tree, config(entry("example.com")))

    assert failed
    assert str(store.root) in said[-1]


def test_warnings_of_the_store_are_passed_on(tree, config, store):
    """What was open to others, say."""
    store.root.mkdir(mode=0o755)
    tree.lineage("example.com")
    said, failed = take_over(tree, config(entry("example.com")))

    assert not failed
    assert f"{store.root} was open to others; its mode is 0700 now" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it away")
def test_the_store_is_made_for_the_user_the_proxy_becomes(tmp_path):
    """/var/lib is root's, and the store is not."""
    nobody = pwd.getpwnam("nobody")
    text = (
        f'[proxy]\nuser = "nobody"\n[backends.haproxy]\nservers = ["127.0.0.1:1"]\n'
        f'[acme]\nstate_dir = "{tmp_path}/lib/state"\n'
    )
    make_state_dir(parse(text, file="x.toml"))
    status = (tmp_path / "lib" / "state").stat()

    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (nobody.pw_uid, nobody.pw_gid, 0o700)
    assert (tmp_path / "lib").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for whom it is made")
def test_a_store_that_cannot_be_made(tmp_path, config):
    (tmp_path / "file").touch()
    text = f'[backends.haproxy]\nservers = ["127.0.0.1:1"]\n[acme]\nstate_dir = "{tmp_path}/file/state"\n'

    with pytest.raises(StoreError, match="cannot be made: Not a directory"):
        make_state_dir(parse(text, file="x.toml"))
