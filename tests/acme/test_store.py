"""The store: disk is the truth (contract section 4), whatever happens while it is written and whoever else writes there."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from sniproxy import durable
from sniproxy.acme import store as store_module
from sniproxy.acme.store import (
    MAX_JSON_BYTES,
    MAX_TEXT_CHARS,
    AccountFiles,
    CertificateFiles,
    CertificateState,
    PendingOrder,
    Store,
)
from sniproxy.bundle import Bundle, PrivateKey, generate_key, key_pem, placeholder
from sniproxy.errors import StoreError
from tests.support.disks import (
    NOBODY,
    child_after,
    directory_for_all,
    each_kill,
    fill,
    fork,
    make_read_only,
    small_disk,
)
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "www.example.com"
DIRECTORY = "https://acme-v02.api.letsencrypt.org/directory"
NOW = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)
ACCOUNT_URL = "https://acme-v02.api.letsencrypt.org/acme/acct/1"
CONTACT = ("mailto:admin@example.com",)

KEY, NEXT_KEY = generate_key("ecdsa-p256"), generate_key("ecdsa-p384")
BUNDLES = [placeholder([NAME], NOW) for _ in range(6)]
ORDER = PendingOrder(
    url="https://ca.example/order/1",
    key=KEY,
    names=(NAME, "192.0.2.1", "2001:db8::1"),
    directory=DIRECTORY,
    profile="shortlived",
    replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE",
)
STATE = CertificateState(
    names=(NAME,),
    directory=DIRECTORY,
    ari_start=NOW + timedelta(days=59),
    ari_end=NOW + timedelta(days=61),
    ari_explanation_url="https://ca.example/incident",
    ari_at=NOW + timedelta(days=60, seconds=1),
    ari_certificate_id="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE",
    ari_checked_at=NOW,
    ari_next_check=NOW + timedelta(hours=6),
    ari_failures=1,
    failures=2,
    next_attempt=NOW + timedelta(minutes=10),
    last_attempt=NOW,
    last_error="urn:ietf:params:acme:error:dns: Körper \u202e\0",
    failed_challenge="tls-alpn-01",
    issued_at=NOW - timedelta(days=1),
    issued_reason="ari",
    deployed_serial="00ab12",
    deployed_at=NOW,
    delivery_error="HAProxy said no",
)


class Warnings(list[str]):
    """What the store has told of."""

    def take(self) -> list[str]:
        taken = self.copy()
        self.clear()
        return taken


@pytest.fixture
def warnings() -> Iterator[Warnings]:
    told = Warnings()
    yield told
    assert not told, "told of, and not expected"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(root: Path, warnings: Warnings) -> Store:
    return Store(root, warnings.append)


@pytest.fixture
def files(store: Store) -> CertificateFiles:
    return store.certificate(NAME)


@pytest.fixture
def account(store: Store) -> AccountFiles:
    return store.account(DIRECTORY)


def same(bundle: Bundle | None, expected: Bundle) -> bool:
    return bundle is not None and bundle.pem == expected.pem


def same_key(key: PrivateKey | None, expected: PrivateKey) -> bool:
    return key is not None and key_pem(key) == key_pem(expected)


def modes(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): stat.S_IMODE(path.lstat().st_mode) for path in [root, *sorted(root.rglob("*"))]
    }


def secrets_of(*keys: PrivateKey) -> list[str]:
    """Parts of the PEM and of the numbers of private keys."""
    found = []
    for key in keys:
        found += [line for line in key_pem(key).decode().splitlines() if len(line) > 30]
        numbers = key.private_numbers()
        secret = numbers.private_value if hasattr(numbers, "private_value") else numbers.d
        found += [str(secret), f"{secret:x}"]
    return found


def shows_none(error: BaseException, keys: tuple[PrivateKey, ...]) -> None:
    """Not in its text, nor in anything that it holds on to."""
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        pending += [one.__cause__, one.__context__]
        text = f"{one!r} {one} {one.args!r} {vars(one)!r} {getattr(one, 'doc', '')} {getattr(one, 'object', '')}"
        assert not [secret for secret in secrets_of(*keys) if secret in text]


# -- what is put there is there


def test_a_store_that_has_nothing_makes_nothing(store: Store, files: CertificateFiles, account: AccountFiles) -> None:
    """Asking is not making: `certs` and `status` only read."""
    assert (files.current(), files.previous(), files.generations(), files.order()) == (None, None, [], None)
    assert files.state() == CertificateState()
    assert (account.load(), account.next_key()) == (None, None)
    assert store.certificate_names() == []
    files.forget_order()
    files.remove()
    account.drop_next_key()
    assert not store.root.exists()


def test_a_bundle_is_kept(files: CertificateFiles, root: Path) -> None:
    """One file for key, leaf and chain: contract section 4, always of one generation."""
    assert files.save(BUNDLES[0]) == 1
    assert same(files.current(), BUNDLES[0])
    assert files.previous() is None
    assert (root / "certificates" / NAME / "0001.pem").read_bytes() == BUNDLES[0].pem


@pytest.mark.parametrize("key_type", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
def test_a_key_of_any_type_is_kept(key_type: str, files: CertificateFiles, account: AccountFiles) -> None:
    """The types of the configuration, of orders and of accounts."""
    key = generate_key(key_type)
    files.save_order(replace(ORDER, key=key))
    account.save(key, None, ())
    order, stored = files.order(), account.load()

    assert order is not None
    assert stored is not None
    assert same_key(order.key, key)
    assert same_key(stored.key, key)


def test_the_last_two_generations_are_kept(files: CertificateFiles) -> None:
    """A way back, should the new one turn out to be of no use."""
    for number, bundle in enumerate(BUNDLES, start=1):
        assert files.save(bundle) == number
        assert same(files.current(), bundle)
        if number > 1:
            assert same(files.previous(), BUNDLES[number - 2])
    assert files.generations() == [6, 5]


def test_generations_go_on_after_9999(files: CertificateFiles) -> None:
    """By number, not by name: 10000.pem comes after 9999.pem."""
    files.save(BUNDLES[0])
    (files.directory / "0001.pem").rename(files.directory / "9998.pem")

    assert [files.save(bundle) for bundle in BUNDLES[1:4]] == [9999, 10000, 10001]
    assert same(files.current(), BUNDLES[3])
    assert files.generations() == [10001, 10000]


def test_a_state_is_kept(files: CertificateFiles) -> None:
    """Everything that survives a restart, to the microsecond."""
    files.save_state(STATE)

    assert files.state() == STATE
    assert all(getattr(STATE, each.name) != each.default for each in fields(STATE)), "a field is not tried"


def test_times_are_written_for_people_too(files: CertificateFiles) -> None:
    """RFC 3339, UTC."""
    elsewhere = timezone(timedelta(hours=5, minutes=30))
    files.save_state(replace(STATE, issued_at=NOW.astimezone(elsewhere), deployed_at=NOW.replace(microsecond=0)))
    document = json.loads((files.directory / "state.json").read_bytes())

    assert document["issued_at"] == "2026-03-01T12:30:15.250000Z"
    assert document["deployed_at"] == "2026-03-01T12:30:15Z"
    assert files.state().issued_at == NOW


def test_an_order_is_kept_until_it_is_forgotten(files: CertificateFiles) -> None:
    """URL and key are on disk before finalize: what is issued after a crash can be had without another order."""
    files.save_order(ORDER)
    order = files.order()

    assert order is not None
    assert same_key(order.key, ORDER.key)
    assert replace(order, key=KEY) == ORDER
    files.forget_order()
    assert files.order() is None
    files.forget_order()


def test_names_may_be_addresses(store: Store) -> None:
    """`names` may hold IP addresses, and the first of them names the certificate."""
    names = ["192.0.2.1", "2001:db8::1", "::1", "a_b-c.example", "x" * 200]
    for name in names:
        store.certificate(name).save(BUNDLES[0])

    assert store.certificate_names() == sorted(names)
    assert same(store.certificate("2001:db8::1").current(), BUNDLES[0])


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-x", "a\0b", "a b", "x" * 201, "ä"])
def test_what_cannot_be_a_name_is_refused(store: Store, name: str) -> None:
    """Names come from command lines too, and become paths."""
    with pytest.raises(StoreError, match="cannot be the name of a certificate"):
        store.certificate(name)


def test_a_certificate_is_removed_with_all_there_is_of_it(store: Store, files: CertificateFiles) -> None:
    """And the others stay."""
    store.certificate("other").save(BUNDLES[0])
    files.save(BUNDLES[0])
    files.save(BUNDLES[1])
    files.save_state(STATE)
    files.save_order(ORDER)
    (files.directory / ".0003.pem.sniproxy-0123456789ab").write_bytes(b"half")
    with files.lock():
        files.remove()

    assert store.certificate_names() == ["other"]
    assert not files.directory.exists()


def test_what_others_have_put_there_stays(files: CertificateFiles, warnings: Warnings) -> None:
    """Nobody else's files are removed."""
    files.save(BUNDLES[0])
    (files.directory / "notes.txt").write_text("mine")
    files.remove()

    assert [path.name for path in files.directory.iterdir()] == ["notes.txt"]
    assert warnings.take() == [f"{files.directory} stays: there are files in it that are not sniproxy's"]


# -- accounts


def test_an_account_is_kept(account: AccountFiles, root: Path) -> None:
    """Key, URL and contact; the directory says which CA it is of."""
    account.save(KEY, ACCOUNT_URL, CONTACT)
    stored = account.load()

    assert stored is not None
    assert same_key(stored.key, KEY)
    assert (stored.url, stored.contact) == (ACCOUNT_URL, CONTACT)
    assert [path.name for path in (root / "accounts").iterdir()] == ["acme-v02.api.letsencrypt.org-5e76d315"]
    assert json.loads((account.directory / "account.json").read_bytes())["directory"] == DIRECTORY


def test_each_directory_has_an_account_of_its_own(store: Store) -> None:
    """One host may have several (Let's Encrypt's Boulder, step-ca's provisioners), and a port is no other host."""
    urls = [
        DIRECTORY,
        "https://ca.example/acme/one/directory",
        "https://ca.example/acme/two/directory",
        "https://ca.example:14000/acme/one/directory",
        "http://[::1]:14000/dir",
        "http://%2e%2e%2f/dir",
        "http://../dir",
        "no URL",
    ]
    for number, url in enumerate(urls):
        store.account(url).save(KEY, f"{number}", ())

    assert [stored.url for url in urls if (stored := store.account(url).load())] == [str(n) for n in range(len(urls))]
    directories = [path.name for path in (store.root / "accounts").iterdir()]
    assert len(directories) == len(urls)
    assert not [name for name in directories if name.startswith((".", "-"))]


def test_an_account_without_its_url_is_its_key(account: AccountFiles) -> None:
    """A start that was cut short: RFC 8555 section 7.3.1 finds the account by its key."""
    account.save(KEY, None, ())

    assert same_key(account.load().key, KEY)
    assert account.load().url is None


def test_a_url_is_believed_for_the_key_it_was_got_with(account: AccountFiles) -> None:
    """The two files are not written at one moment; the CA would refuse another key with this URL."""
    account.save(KEY, ACCOUNT_URL, CONTACT)
    (account.directory / "key.pem").write_bytes(key_pem(NEXT_KEY))
    stored = account.load()

    assert stored is not None
    assert same_key(stored.key, NEXT_KEY)
    assert stored.url is None


def test_the_same_key_is_not_written_again(account: AccountFiles) -> None:
    """What is not touched cannot be lost."""
    account.save(KEY, None, ())
    before = (account.directory / "key.pem").stat().st_ino
    account.save(KEY, ACCOUNT_URL, CONTACT)

    assert (account.directory / "key.pem").stat().st_ino == before
    account.save(NEXT_KEY, None, ())
    assert same_key(account.load().key, NEXT_KEY)


def test_a_key_rollover_takes_three_steps(account: AccountFiles) -> None:
    """RFC 8555 section 7.3.5: on disk first, then the CA, then in the old one's place."""
    account.save(KEY, ACCOUNT_URL, CONTACT)
    account.save_next_key(NEXT_KEY)

    assert same_key(account.load().key, KEY)
    assert same_key(account.next_key(), NEXT_KEY)
    account.adopt_next_key()
    assert account.next_key() is None
    assert same_key(account.load().key, NEXT_KEY)
    assert (account.load().url, account.load().contact) == (ACCOUNT_URL, CONTACT)


def test_a_key_rollover_that_the_ca_refused_changes_nothing(account: AccountFiles) -> None:
    """The CA's word decides."""
    account.save(KEY, ACCOUNT_URL, CONTACT)
    account.save_next_key(NEXT_KEY)
    account.drop_next_key()

    assert account.next_key() is None
    assert same_key(account.load().key, KEY)
    assert account.load().url == ACCOUNT_URL
    with pytest.raises(StoreError, match="there is no key to change to"):
        account.adopt_next_key()


# -- killed at any step


def test_killed_at_any_step_the_old_or_the_new_bundle_is_current(store: Store, files: CertificateFiles) -> None:
    """Reliability F1: never empty, never key and chain of different pairs; the next start works."""
    files.save(BUNDLES[0])
    steps = 0
    for step in each_kill(lambda: files.save(BUNDLES[1])):
        steps += 1
        current = files.current()
        assert same(current, BUNDLES[0]) or same(current, BUNDLES[1])
        durable.remove_leftovers(files.directory, 0)
        assert store.prepare() == []
        if step:
            files.remove()
            files.save(BUNDLES[0])
    assert steps > 10
    assert same(files.current(), BUNDLES[1])
    assert same(files.previous(), BUNDLES[0])


def test_killed_at_any_step_two_good_generations_stay(files: CertificateFiles) -> None:
    """Also while an old one is removed."""
    for step in each_kill(lambda: files.save(BUNDLES[2])):
        if files.generations():
            assert same(files.current(), BUNDLES[2]) or same(files.current(), BUNDLES[1])
            assert files.previous() is not None
            assert len(files.generations()) in (2, 3)
        if step:
            files.remove()
            files.save(BUNDLES[0])
            files.save(BUNDLES[1])
    assert len(files.generations()) == 2


def test_killed_at_any_step_of_the_very_first_bundle_the_next_start_works(store: Store, root: Path) -> None:
    """Reliability F1, with the directories still to be made."""
    files = store.certificate(NAME)
    for step in each_kill(lambda: files.save(BUNDLES[0])):
        assert files.current() is None or same(files.current(), BUNDLES[0])
        assert store.prepare() == []
        assert set(modes(root).values()) <= {0o700, 0o600}
        if step:
            files.remove()
            (root / "certificates").rmdir()
            (root / "accounts").rmdir()
            root.rmdir()
    assert same(files.current(), BUNDLES[0])


def test_killed_at_any_step_the_old_or_the_new_state_is_there(files: CertificateFiles) -> None:
    """Failures are counted on disk; a count that is lost is a CA's limit that is hit."""
    files.save_state(STATE)
    new = replace(STATE, failures=3, last_error="something else")
    for step in each_kill(lambda: files.save_state(new)):
        assert files.state() in (STATE, new)
        if step:
            files.save_state(STATE)
    assert files.state() == new


def test_killed_at_any_step_the_old_or_the_new_order_is_there(files: CertificateFiles) -> None:
    """An order without its key, or a key without its order, would be a certificate that is lost."""
    new = replace(ORDER, url="https://ca.example/order/2", key=NEXT_KEY)
    for step in each_kill(lambda: files.save_order(new)):
        order = files.order()
        assert order is None or (order.url, key_pem(order.key)) == (new.url, key_pem(new.key))
        if step:
            files.forget_order()
    for step in each_kill(lambda: files.save_order(ORDER)):
        order = files.order()
        assert order is not None
        assert (order.url, key_pem(order.key)) in ((new.url, key_pem(new.key)), (ORDER.url, key_pem(KEY)))
        if step:
            files.save_order(new)
    for step in each_kill(files.forget_order):
        assert files.order() is None or files.order().url == ORDER.url
        if step:
            files.save_order(ORDER)
    assert files.order() is None


def test_killed_at_any_step_an_account_has_its_key(account: AccountFiles) -> None:
    """Reliability A9: the account key is used again; one that the CA knows is never lost."""
    for step in each_kill(lambda: account.save(KEY, ACCOUNT_URL, CONTACT)):
        stored = account.load()
        assert stored is None or same_key(stored.key, KEY)
        assert stored is None or stored.url in (None, ACCOUNT_URL)
        if step:
            for path in account.directory.glob("*") if account.directory.exists() else ():
                path.unlink()
    assert account.load().url == ACCOUNT_URL


def test_killed_at_any_step_of_a_key_rollover_both_keys_or_the_new_one_are_there(account: AccountFiles) -> None:
    """Whichever of the two the CA knows, it is on disk, and no URL goes with the wrong one."""
    account.save(KEY, ACCOUNT_URL, CONTACT)
    for step in each_kill(lambda: account.save_next_key(NEXT_KEY)):
        assert same_key(account.load().key, KEY)
        assert account.next_key() is None or same_key(account.next_key(), NEXT_KEY)
        if step:
            account.drop_next_key()
    for step in each_kill(account.adopt_next_key):
        stored = account.load()
        if same_key(stored.key, KEY):
            assert stored.url == ACCOUNT_URL
            assert same_key(account.next_key(), NEXT_KEY)
        else:
            assert same_key(stored.key, NEXT_KEY)
            assert stored.url in (None, ACCOUNT_URL)
            assert account.next_key() is None
        if step:
            account.save(KEY, ACCOUNT_URL, CONTACT)
            account.save_next_key(NEXT_KEY)
    assert same_key(account.load().key, NEXT_KEY)
    assert account.load().url == ACCOUNT_URL


def test_killed_at_any_step_a_certificate_can_still_be_removed(files: CertificateFiles) -> None:
    """What is left of it is no certificate with a key of another."""
    for step in each_kill(files.remove):
        assert files.current() is None or same(files.current(), BUNDLES[1]) or same(files.current(), BUNDLES[0])
        if step:
            files.save(BUNDLES[0])
            files.save(BUNDLES[1])
            files.save_state(STATE)
    assert not files.directory.exists()


# -- disks that fail


def test_on_a_full_disk_everything_is_as_it_was_and_can_be_tried_again(tmp_path: Path, warnings: Warnings) -> None:
    """Reliability F1: old pair complete, retried later."""
    with small_disk(tmp_path, "128k") as disk:
        store = Store(disk / "state", warnings.append)
        files, account = store.certificate(NAME), store.account(DIRECTORY)
        files.save(BUNDLES[0])
        files.save_state(STATE)
        account.save(KEY, ACCOUNT_URL, CONTACT)
        before = sorted(path for path in disk.rglob("*"))
        filler = fill(disk)
        for attempt in (
            lambda: files.save(BUNDLES[1]),
            lambda: files.save_state(replace(STATE, failures=9)),
            lambda: files.save_order(ORDER),
            lambda: account.save_next_key(NEXT_KEY),
        ):
            with pytest.raises(StoreError, match=r"cannot be written: No space left on device \(make room there") as e:
                attempt()
            shows_none(e.value, (KEY, NEXT_KEY, BUNDLES[1].key))
        assert store.prepare() == []
        assert same(files.current(), BUNDLES[0])
        assert files.state() == STATE
        filler.unlink()
        assert sorted(path for path in disk.rglob("*")) == before
        assert files.save(BUNDLES[1]) == 2


def test_on_a_read_only_disk_everything_can_be_read(tmp_path: Path, warnings: Warnings) -> None:
    """Reliability F1: EROFS. The old certificate keeps serving, and the operator is told."""
    with small_disk(tmp_path) as disk:
        store = Store(disk / "state", warnings.append)
        files = store.certificate(NAME)
        assert store.prepare() == []
        files.save(BUNDLES[0])
        make_read_only(disk)
        for attempt in (lambda: files.save(BUNDLES[1]), files.lock().try_acquire, files.forget_order):
            with pytest.raises(StoreError, match="Read-only file system"):
                attempt()
        with pytest.raises(StoreError, match=r"cannot be written to: Read-only file system \(after an error of"):
            store.prepare()
        assert same(files.current(), BUNDLES[0])
        make_read_only(disk, read_only=False)
        assert store.prepare() == []


def test_a_broken_file_on_a_read_only_disk_is_told_of(tmp_path: Path, warnings: Warnings) -> None:
    """It cannot be set aside; that is no reason to stop."""
    with small_disk(tmp_path) as disk:
        files = Store(disk, warnings.append).certificate(NAME)
        files.save_state(STATE)
        (files.directory / "state.json").write_bytes(b"{")
        make_read_only(disk)
        assert files.state() == CertificateState()
        assert "and cannot be set aside (Read-only file system)" in warnings.take()[0]
        make_read_only(disk, read_only=False)


ATTEMPTS = {
    "current": lambda files: files.current(),
    "previous": lambda files: files.previous(),
    "state": lambda files: files.state(),
    "order": lambda files: files.order(),
    "save": lambda files: files.save(BUNDLES[1]),
    "save_state": lambda files: files.save_state(STATE),
    "save_order": lambda files: files.save_order(ORDER),
    "forget_order": lambda files: files.forget_order(),
}


@pytest.mark.parametrize(
    ("function", "attempt"),
    [
        ("read", "current"),
        ("read", "previous"),
        ("read", "state"),
        ("read", "order"),
        ("listdir", "current"),
        ("listdir", "save"),
        ("write", "save"),
        ("fsync", "save_state"),
        ("rename", "save_order"),
        ("unlink", "forget_order"),
    ],
)
def test_a_disk_that_fails_is_an_error_and_not_an_absence(
    function: str, attempt: str, files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO: a certificate that cannot be read just now must not be ordered again."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    files.save(BUNDLES[0])
    files.save_state(STATE)
    files.save_order(ORDER)
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(StoreError, match=r"Input/output error \(the disk fails: see `dmesg`\)") as caught:
        ATTEMPTS[attempt](files)
    monkeypatch.undo()

    shows_none(caught.value, (KEY, BUNDLES[0].key, BUNDLES[1].key))
    assert same(files.current(), BUNDLES[0])
    assert files.state() == STATE


def test_an_old_generation_that_cannot_be_removed_does_no_harm(
    files: CertificateFiles, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one is there, and that is what counts."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    files.save(BUNDLES[0])
    files.save(BUNDLES[1])
    monkeypatch.setattr(os, "unlink", fail)
    assert files.save(BUNDLES[2]) == 3
    monkeypatch.undo()

    assert warnings.take()[0].startswith("an old generation stays: ")
    assert files.generations() == [3, 2, 1]
    files.save(BUNDLES[3])
    assert files.generations() == [4, 3]


def test_without_rights_the_error_says_whose_it_is_and_who_we_are() -> None:
    """Says whose fault it is and what to do next; failure is never absence."""
    with directory_for_all() as directory:
        told = Warnings()
        store = Store(directory / "state", told.append)
        files = store.certificate(NAME)
        files.save(BUNDLES[0])
        files.save_state(STATE)
        if os.geteuid() != 0:
            files.directory.chmod(0)

        def attempt() -> None:
            for attempt in (files.current, files.state, files.order, lambda: files.save(BUNDLES[1])):
                with pytest.raises(StoreError, match="Permission denied") as caught:
                    attempt()
                assert "has mode 0" in str(caught.value)
                assert "make acme.state_dir and all in it" in str(caught.value)
            with pytest.raises(StoreError, match="Permission denied"):
                files.lock().try_acquire()
            if store.root.stat().st_uid != os.geteuid():
                with pytest.raises(StoreError, match="belongs to root and has mode 0700; this is nobody: make acme"):
                    store.prepare()
                with pytest.raises(StoreError, match="Permission denied"):
                    store.certificate_names()

        assert fork(attempt, user=NOBODY) == 0
        assert not told
        files.directory.chmod(0o700)


def test_a_directory_that_may_not_be_made_is_an_error_without_dangerous_advice() -> None:
    """/var/lib is root's, and has to stay so."""
    with directory_for_all() as directory:
        directory.chmod(0o555)

        def attempt() -> None:
            with pytest.raises(StoreError, match="cannot be made: Permission denied") as caught:
                Store(directory / "state", print).prepare()
            assert "chown" not in str(caught.value)

        assert fork(attempt, user=NOBODY) == 0
        directory.chmod(0o755)


# -- files that are broken, or not ours


def test_a_broken_generation_is_reported_and_the_one_before_it_used(
    files: CertificateFiles, warnings: Warnings
) -> None:
    """Reliability F4, once: it is read every few seconds."""
    files.save(BUNDLES[0])
    files.save(BUNDLES[1])
    path = files.directory / "0002.pem"
    for content in (b"", bytes(700), b"garbage", BUNDLES[1].pem[:500], BUNDLES[1].pem[:-20], key_pem(KEY)):
        path.write_bytes(content)
        assert same(files.current(), BUNDLES[0])
        assert same(files.current(), BUNDLES[0])
        assert files.previous() is None
    told = warnings.take()
    assert told
    assert len(set(told)) == len(told)
    assert all(text.startswith(f"{path} is broken (") for text in told)
    assert all(text.endswith("), and not used") for text in told)


def test_with_nothing_but_broken_generations_there_is_none(files: CertificateFiles, warnings: Warnings) -> None:
    """It has to be obtained; what is broken is still there to be looked at, and its number is not used again."""
    files.save(BUNDLES[0])
    (files.directory / "0001.pem").write_bytes(b"")

    assert files.current() is None
    assert files.generations() == [1]
    assert files.save(BUNDLES[1]) == 2
    assert files.generations() == [2, 1]
    assert same(files.current(), BUNDLES[1])
    assert warnings.take()


def test_a_broken_generation_does_not_push_out_the_last_good_one(files: CertificateFiles, warnings: Warnings) -> None:
    """Two that can be used are kept."""
    files.save(BUNDLES[0])
    files.save(BUNDLES[1])
    (files.directory / "0002.pem").write_bytes(b"")
    files.save(BUNDLES[2])

    assert files.generations() == [3, 2, 1]
    assert same(files.previous(), BUNDLES[0])
    files.save(BUNDLES[3])
    assert files.generations() == [4, 3]
    assert warnings.take()


def test_a_chain_that_is_cut_off_is_broken(files: CertificateFiles, warnings: Warnings, tmp_path: Path) -> None:
    """A leaf without its issuer would be served, and refused by every client."""
    authority = Authority(tmp_path)
    whole = authority.issue(NAME) + authority.root.read_bytes()
    files.save(BUNDLES[0])
    files.save(Bundle.parse(whole))
    (files.directory / "0002.pem").write_bytes(whole[:-100])

    assert same(files.current(), BUNDLES[0])
    assert "(cut off)" in warnings.take()[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON from line 1, column 1 on"),
        (b'{"failures": 2, "names": ["www', "not JSON from line 1, column 27 on"),
        (bytes(300), "not JSON from line 1, column 1 on"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"failures": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b" " * (MAX_JSON_BYTES + 1), f"file has more than {MAX_JSON_BYTES} bytes"),
        (b'{"failures": "2"}', '"failures" makes no sense'),
        (b'{"failures": -1}', '"failures" makes no sense'),
        (b'{"failures": true}', '"failures" makes no sense'),
        (b'{"failures": 1.5}', '"failures" makes no sense'),
        (b'{"names": "a"}', '"names" makes no sense'),
        (b'{"names": [1]}', '"names" makes no sense'),
        (b'{"last_error": []}', '"last_error" makes no sense'),
        (b'{"issued_at": "yesterday"}', '"issued_at" makes no sense'),
        (b'{"issued_at": "2026-03-01T12:00:00"}', '"issued_at" makes no sense'),
        (b'{"issued_at": "0001-01-01T00:00:00+23:59"}', '"issued_at" makes no sense'),
        (b'{"issued_at": 1772366400}', '"issued_at" makes no sense'),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_broken_state_is_set_aside_and_reported(
    content: bytes, reason: str, store: Store, files: CertificateFiles, warnings: Warnings
) -> None:
    """Reliability F4: truncated, foreign or corrupt; other names are not affected, and the next start works."""
    other = store.certificate("other")
    other.save_state(STATE)
    files.save_state(STATE)
    (files.directory / "state.json").write_bytes(content)

    assert files.state() == CertificateState()
    (told,) = warnings.take()
    assert told.startswith(f"{files.directory}/state.json is broken ({reason}): set aside as state.json.broken, ")
    assert told.endswith("failures and renewal times begin anew")
    assert (files.directory / "state.json.broken").read_bytes() == content
    assert other.state() == STATE
    assert store.prepare() == []
    assert files.state() == CertificateState()
    files.save_state(STATE)
    assert files.state() == STATE


def test_what_a_newer_version_wrote_is_passed_over(files: CertificateFiles) -> None:
    """A downgrade keeps what it understands."""
    files.save_state(STATE)
    path = files.directory / "state.json"
    path.write_bytes(json.dumps({**json.loads(path.read_bytes()), "invented": {"later": [1]}}).encode())

    assert files.state() == STATE


def test_what_an_older_version_wrote_is_completed(files: CertificateFiles) -> None:
    """An upgrade takes over what there is."""
    files.save_state(STATE)
    (files.directory / "state.json").write_bytes(b'{"failures": 2}')

    assert files.state() == CertificateState(failures=2)


@pytest.mark.parametrize("content", [b"{}", b'{"url": "x"}', b'{"url": "x", "key": "no key"}', b'{"key": null}'])
def test_a_broken_order_is_set_aside_and_reported(content: bytes, files: CertificateFiles, warnings: Warnings) -> None:
    """An order that cannot be gone on with is made again."""
    files.save_order(ORDER)
    (files.directory / "order.json").write_bytes(content)

    assert files.order() is None
    assert warnings.take()[0].endswith(": set aside as order.json.broken, a new order is made")


def test_a_broken_account_key_is_set_aside_and_reported(account: AccountFiles, warnings: Warnings) -> None:
    """It is of no use to anybody; whoever has a copy can put it back."""
    account.save(KEY, ACCOUNT_URL, CONTACT)
    (account.directory / "key.pem").write_bytes(key_pem(KEY)[:100])

    assert account.load() is None
    assert account.load() is None
    told = warnings.take()
    assert told[0].endswith(": set aside as key.pem.broken, there will be a new account")
    assert told[1:] == [f"{account.directory}/key.pem is not there any more: there will be a new account"]


def test_a_broken_account_record_leaves_the_account_its_key(account: AccountFiles, warnings: Warnings) -> None:
    """RFC 8555 section 7.3.1: the URL can be had for the key."""
    account.save(KEY, ACCOUNT_URL, CONTACT)
    (account.directory / "account.json").write_bytes(b"{")

    assert same_key(account.load().key, KEY)
    assert account.load().url is None
    assert warnings.take()[0].endswith("set aside as account.json.broken, the account is looked up by its key")


def test_a_broken_next_key_is_set_aside_and_reported(account: AccountFiles, warnings: Warnings) -> None:
    """It was never the account's: the CA hears of it after it is on disk, whole."""
    account.save(KEY, ACCOUNT_URL, CONTACT)
    account.save_next_key(NEXT_KEY)
    (account.directory / "next.pem").write_bytes(b"")

    assert account.next_key() is None
    assert same_key(account.load().key, KEY)
    assert warnings.take()[0].endswith("set aside as next.pem.broken, the account keeps the key it has")


def test_whoever_only_looks_leaves_what_is_broken_where_it_is(
    root: Path, files: CertificateFiles, account: AccountFiles, warnings: Warnings
) -> None:
    """Commands that look must not change what the running program will find."""
    files.save_state(STATE)
    account.save(KEY, ACCOUNT_URL, CONTACT)
    for path in (files.directory / "state.json", account.directory / "account.json"):
        path.write_bytes(b"{")
    looking = Store(root, warnings.append, sets_aside=False)

    assert looking.certificate(NAME).state() == CertificateState()
    assert looking.account(DIRECTORY).load().url is None
    assert len(warnings.take()) == 2
    assert (files.directory / "state.json").read_bytes() == (account.directory / "account.json").read_bytes() == b"{"


def test_a_directory_in_the_place_of_a_file_is_broken(
    files: CertificateFiles, account: AccountFiles, warnings: Warnings
) -> None:
    """Reliability F4: foreign."""
    files.save(BUNDLES[0])
    (files.directory / "0002.pem").mkdir()
    (files.directory / "state.json").mkdir()

    assert same(files.current(), BUNDLES[0])
    assert files.state() == CertificateState()
    assert files.save(BUNDLES[1]) == 3
    assert [text.partition(" is broken ")[2][:20] for text in warnings.take()] == ["(not a regular file)"] * 2


def test_files_that_look_a_little_like_generations_are_passed_over(store: Store, files: CertificateFiles) -> None:
    """Editors' copies, other people's names, digits that are none of ASCII's."""
    files.save(BUNDLES[0])
    for name in ("00002.pem", "2.pem", "0002.pem~", "0002.pem.bak", ".0002.pem", "٠٠٠٢.pem", "0002.PEM"):
        (files.directory / name).write_bytes(b"")

    assert files.generations() == [1]
    assert files.save(BUNDLES[1]) == 2
    assert store.prepare()  # they were open to others
    assert store.certificate_names() == [NAME]


def test_foreign_files_in_the_store_do_no_harm(store: Store, root: Path, files: CertificateFiles) -> None:
    """Reliability F4: reported, and left alone."""
    files.save(BUNDLES[0])
    store.prepare()
    (root / "certificates" / "README").write_text("mine")
    (root / "certificates" / "link").symlink_to("/")
    (root / "certificates" / ".git").mkdir(mode=0o755)
    (root / "accounts" / "x").write_text("mine")

    assert store.prepare() == [
        f"{root}/accounts/x is not sniproxy's, and left alone",
        f"{root}/certificates/.git is not sniproxy's, and left alone",
        f"{root}/certificates/README is not sniproxy's, and left alone",
        f"{root}/certificates/link is not sniproxy's, and left alone",
    ]
    assert store.certificate_names() == ["link", NAME]
    assert modes(root)["certificates/.git"] == 0o755


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps({"failures": 1, "names": value, "issued_at": value}).encode()
    )
)
def test_no_content_of_a_file_is_fatal(content: bytes) -> None:
    """Reliability F4, for anything at all."""
    try:
        store_module._decode(CertificateState, content)
    except store_module._Broken as broken:
        assert broken.__context__ is None  # noqa: PT017  what it was raised in may hold the content
    with pytest.raises(store_module._Broken) as caught:
        store_module._decode(PendingOrder, content)
    assert caught.value.__context__ is None


texts = st.text(max_size=50)
# Not zones with a summer time: of an hour that is there twice, Python says that it equals no other (PEP 495).
zones = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
times = st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=zones)  # noqa: DTZ001


@given(st.builds(CertificateState, names=st.lists(texts).map(tuple), last_error=st.none() | texts, issued_at=times))
def test_any_state_comes_back_as_it_was(state: CertificateState) -> None:
    """Whatever a CA's words hold."""
    assert store_module._decode(CertificateState, store_module._encode(state)) == state


def test_endless_texts_are_cut(files: CertificateFiles) -> None:
    """A CA's words have no bound; a file that is too long to be read again would be lost."""
    endless = "\0" * 1_000_000
    names = tuple(f"{'x' * 60}.{'x' * 60}.{'x' * 60}.{'x' * 60}.{number:04}.example" for number in range(100))
    files.save_state(
        replace(STATE, names=names, last_error=endless, delivery_error=endless, ari_explanation_url=endless)
    )

    assert (files.directory / "state.json").stat().st_size < MAX_JSON_BYTES / 2
    assert files.state().last_error == "\0" * MAX_TEXT_CHARS
    assert files.state().names == names


# -- rights


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077], ids=oct)
def test_nobody_else_may_read_anything_whatever_the_umask(mask: int, store: Store, root: Path) -> None:
    """Contract section 4: directories 0700, files 0600; reliability F2: umask 000."""
    before = os.umask(mask)
    try:
        files, account = store.certificate(NAME), store.account(DIRECTORY)
        files.save(BUNDLES[0])
        files.save_state(STATE)
        files.save_order(ORDER)
        with files.lock():
            account.save(KEY, ACCOUNT_URL, CONTACT)
            account.save_next_key(NEXT_KEY)
        store.prepare()
    finally:
        os.umask(before)
    found = modes(root)

    assert len(found) == 12
    for path, mode in found.items():
        assert mode == (0o700 if (root / path).is_dir() else 0o600)


def test_what_was_open_to_others_is_closed_and_told_of(store: Store, root: Path, files: CertificateFiles) -> None:
    """Reliability F2, for files that were there before: restored from a backup, copied by hand."""
    files.save(BUNDLES[0])
    path = files.directory / "0001.pem"
    path.chmod(0o644)
    files.directory.chmod(0o755)
    root.chmod(0o750)

    assert store.prepare() == [
        f"{root} was open to others; its mode is 0700 now",
        f"{files.directory} was open to others; its mode is 0700 now",
        f"{path} was open to others; its mode is 0600 now, but a key in it should be replaced",
    ]
    assert store.prepare() == []
    assert set(modes(root).values()) == {0o700, 0o600}


def test_leftovers_of_killed_processes_are_removed_once_they_are_old(store: Store, files: CertificateFiles) -> None:
    """Each holds a key that nobody knows of."""
    files.save(BUNDLES[0])
    old, new = (files.directory / f".0002.pem.sniproxy-{number:012x}" for number in range(2))
    for path in (old, new):
        path.write_bytes(b"half")
        path.chmod(0o600)
    os.utime(old, (0, 0))

    assert store.prepare() == []
    assert not old.exists()
    assert new.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to others")
def test_root_is_told_that_others_cannot_read_what_it_writes(store: Store, root: Path) -> None:
    """`sniproxy renew` by root, and a proxy that is somebody else: the usual way to lose a renewal."""
    store.prepare()
    os.chown(root, NOBODY, NOBODY)

    (text,) = store.prepare()
    assert text.startswith(f"{root} belongs to nobody, who cannot read what root writes there, and this is root: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to others")
def test_one_certificate_of_somebody_else_does_not_concern_the_others() -> None:
    """Reliability F4: other names unaffected, start succeeds."""
    with directory_for_all() as directory:
        store = Store(directory / "state", print)
        store.certificate("ours").save(BUNDLES[0])
        store.certificate("theirs").save(BUNDLES[0])
        store.certificate("mixed").save(BUNDLES[0])
        for path in [store.root, *store.root.rglob("*")]:
            if "theirs" not in str(path) and path.name != "0001.pem":
                os.chown(path, NOBODY, NOBODY)
        os.chown(store.certificate("ours").directory / "0001.pem", NOBODY, NOBODY)

        def attempt() -> None:
            mixed, theirs = store.prepare()
            assert mixed == f"{store.certificate('mixed').directory}/0001.pem belongs to root, and this is nobody"
            assert "theirs cannot be put in order: Permission denied (" in theirs
            assert same(store.certificate("ours").current(), BUNDLES[0])

        assert fork(attempt, user=NOBODY) == 0


# -- two processes


def test_two_processes_order_one_after_the_other(files: CertificateFiles, account: AccountFiles) -> None:
    """Reliability A9: one order per name; the lock of a process that was killed is free."""
    for each in (files, account):
        lock, theirs = each.lock(), each.lock()
        with child_after(theirs.try_acquire):
            assert not lock.try_acquire()
        assert lock.try_acquire()
        assert not each.lock().try_acquire()
        lock.release()


def test_certificates_do_not_wait_for_each_other(store: Store) -> None:
    """One lock for each."""
    with store.certificate("one").lock() as one, store.certificate("other").lock() as other:
        assert one.is_held()
        assert other.is_held()


def test_a_lock_is_one_on_a_directory_that_was_removed_and_made_again(files: CertificateFiles) -> None:
    """The file is another then (stat(2), st_ino), and the old lock excludes nobody."""
    before, after = files.lock(), files.lock()
    assert before.try_acquire()
    files.remove()
    assert not before.is_held()
    assert after.try_acquire()
    before.release()
    assert not files.lock().try_acquire()
    after.release()


def test_what_another_process_has_stored_is_seen(store: Store, files: CertificateFiles, root: Path) -> None:
    """Disk is the truth: nothing is remembered in between."""
    files.save(BUNDLES[0])

    def other_process() -> None:
        theirs = Store(root, print).certificate(NAME)
        theirs.save(BUNDLES[1])
        theirs.save_state(STATE)

    assert fork(other_process) == 0
    assert same(files.current(), BUNDLES[1])
    assert files.state() == STATE


# -- keys


def test_no_key_is_in_any_text(files: CertificateFiles, account: AccountFiles, warnings: Warnings) -> None:
    """No private key may ever reach a log, an exception text or a repr."""
    rsa = generate_key("rsa-2048")
    pkcs1 = rsa.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    keys = (KEY, NEXT_KEY, rsa, BUNDLES[0].key)
    files.save(BUNDLES[0])
    files.save_order(replace(ORDER, key=rsa))
    account.save(KEY, ACCOUNT_URL, CONTACT)
    account.save_next_key(NEXT_KEY)
    shown = [repr(files.current()), repr(files.order()), repr(account.load()), repr(ORDER), repr(files), repr(account)]
    broken = [
        key_pem(rsa)[:-60],
        key_pem(rsa).replace(b"A", b"!"),
        key_pem(rsa) * 2,
        pkcs1[:600] + b"\xff" + pkcs1[600:],
        pkcs1.replace(b"-----BEGIN", b"-----BEGIN X"),
        b"x" * 10 + pkcs1,
        json.dumps({"url": "x", "key": pkcs1.decode()[:-100]}).encode(),
        json.dumps({"key": pkcs1.decode()}).encode()[:-5],
        json.dumps({pkcs1.decode(): 1}).encode(),
        json.dumps([pkcs1.decode()]).encode(),
    ]
    for content in broken:
        for path in (files.directory / "0001.pem", files.directory / "order.json", account.directory / "next.pem"):
            path.write_bytes(content)
        (account.directory / "key.pem").write_bytes(content)
        files.current()
        files.order()
        account.next_key()
        account.load()
    told = warnings.take()

    assert len(told) > 10
    found = [secret for secret in secrets_of(*keys) for text in [*shown, *told] if secret in text]
    assert not found
    assert not [line for line in pkcs1.decode().splitlines()[1:-1] for text in [*shown, *told] if line in text]


def test_warnings_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch, warnings: Warnings) -> None:
    """Every buffer has a cap."""
    monkeypatch.setattr(store_module, "MAX_WARNED", 3)
    report = store_module._Reports(warnings.append)
    for text in ("a", "b", "a", "c", "b", "d", "a"):
        report(text)

    assert warnings.take() == ["a", "b", "c", "d", "a"]
    assert len(report._told) <= 3
