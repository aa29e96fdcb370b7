"""Our account: one at each directory, whatever ends the program half-way, and with a key that is never lost."""

from __future__ import annotations

import asyncio
import threading
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

import pytest
from josepy.jwk import JWKEC

from sniproxy import durable
from sniproxy.acme import locking
from sniproxy.acme.account import Account, AccountSettings, is_unknown_account
from sniproxy.acme.store import AccountFiles, Store
from sniproxy.bundle import generate_key
from sniproxy.errors import AcmeError, CaUnreachable, Problem, StoreError
from tests.support.acme_stub import AcmeStub
from tests.support.kept import CONTACT, contents, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sniproxy.acme.client import Client
    from sniproxy.bundle import PrivateKey
    from tests.support.acme_stub import Request

MAC_KEY = urlsafe_b64encode(bytes(range(40, 72))).decode().rstrip("=")


@pytest.fixture
def stub() -> Iterator[AcmeStub]:
    with AcmeStub(validate=False) as stub:
        yield stub


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "LOCK_POLL_SECONDS", 0.005)


class Desk:
    """Accounts of several processes on one disk; `close` lets them all go."""

    def __init__(self, stub: AcmeStub, directory: Path) -> None:
        self.stub = stub
        self.directory = directory
        self.accounts: list[Account] = []

    @property
    def files(self) -> AccountFiles:
        return Store(self.directory, warn=pytest.fail).account(self.stub.directory_url)

    def account(self, *, kept: bool = True, **changes: Any) -> Account:
        known: dict[str, Any] = {"directory": self.stub.directory_url, "contact": CONTACT, "agree_to_terms": True}
        account = Account(AccountSettings(**{**known, **changes}), self.files if kept else None)
        self.accounts.append(account)
        return account

    def url(self) -> str | None:
        stored = self.files.load()
        assert stored is not None
        return stored.url


@pytest.fixture
def desk(runner: asyncio.Runner, stub: AcmeStub, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(stub, tmp_path / "state")
    yield desk
    for account in desk.accounts:
        runner.run(account.close())


def thumbprint(key: PrivateKey) -> bytes:
    thumbprint: bytes = JWKEC(key=key).public_key().thumbprint()
    return thumbprint


def knows(stub: AcmeStub, key: PrivateKey) -> bool:
    """Whether the CA has one account, with this key."""
    return [account.key.thumbprint() for account in stub.accounts] == [thumbprint(key)]


def die(stub: AcmeStub, resource: str, task: Callable[[], asyncio.Task[Any]], when: Any) -> None:
    """The process ends at this moment of a request: nothing that comes after it is done."""
    loop = asyncio.get_running_loop()
    stub.on(resource, lambda _: loop.call_soon_threadsafe(task().cancel), when=when)
    stub.hang(resource, carried_out=when != "received")


async def dies(stub: AcmeStub, resource: str, work: Any, when: Any) -> None:
    tasks: list[asyncio.Task[Any]] = []
    die(stub, resource, lambda: tasks[0], when)
    tasks.append(asyncio.get_running_loop().create_task(work))
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[0].cancelled()
    stub.heal()


# ---------------------------------------------------------------------------------------------------- made, and found


async def test_it_is_made_when_it_is_first_needed(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """RFC 8555 section 7.3: with the terms agreed to, and where its owner can be reached."""
    account = desk.account()
    assert stub.requests == []

    client = await account.client()

    assert [known.url for known in stub.accounts] == [client.account_url]
    assert stub.payloads("newAccount") == [{"termsOfServiceAgreed": True, "contact": list(CONTACT)}]
    assert await account.client() is client


async def test_its_key_is_on_disk_before_the_ca_hears_of_it(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """Or a crash would leave an account that nobody has the key of."""
    seen: list[PrivateKey] = []

    def look(_: Request) -> None:
        stored = desk.files.load()
        assert stored is not None
        assert stored.url is None
        seen.append(stored.key)

    stub.on("newAccount", look, when="received")
    await desk.account().client()

    assert knows(stub, seen[0])


async def test_where_the_key_cannot_be_kept_there_is_no_account(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without room: told, and the CA is not asked."""

    def full(*_: object) -> None:
        raise StoreError("no space left on device")

    monkeypatch.setattr(AccountFiles, "save", full)
    with pytest.raises(StoreError, match="no space"):
        await desk.account().client()

    assert stub.count("newAccount") == 0


async def test_it_is_made_once(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """Let's Encrypt: 10 accounts for an address in three hours. All that need it get the one."""
    account = desk.account()
    clients = await asyncio.gather(*(account.client() for _ in range(10)))

    assert len(set(map(id, clients))) == 1
    assert len(stub.accounts) == 1


async def test_the_next_process_asks_nobody(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """The CA's name for it is on disk, and good for ever (RFC 8555 section 7.3)."""
    first = await desk.account().client()
    before = len(stub.requests)
    client = await desk.account().client()

    assert (client.account_url, client.thumbprint) == (first.account_url, first.thumbprint)
    assert len(stub.requests) == before


async def test_two_processes_at_once_make_one(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """The lock: who comes second finds what the first has made."""
    let = stub.hang("newAccount")
    accounts = [desk.account() for _ in range(3)]

    async def let_go() -> None:
        await until(lambda: stub.count("newAccount"), "one of them asks")
        let.set()

    *clients, _ = await asyncio.gather(*(account.client() for account in accounts), let_go())

    assert len({client.account_url for client in clients}) == 1
    assert (len(stub.accounts), stub.count("newAccount")) == (1, 1)


async def test_it_is_found_by_its_key_after_a_crash(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """RFC 8555 section 7.3.1: between what the CA has made and our knowing of it."""
    await dies(stub, "newAccount", desk.account().client(), "carried out")
    assert (len(stub.accounts), desk.url()) == (1, None)

    client = await desk.account().client()

    assert [known.url for known in stub.accounts] == [client.account_url] == [desk.url()]
    assert stub.payloads("newAccount")[-1] == {"onlyReturnExisting": True}


async def test_what_a_crash_has_kept_from_the_ca_is_made_up_for(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk
) -> None:
    """With the key that was kept: found by it, no; so it is made, once."""
    await dies(stub, "newAccount", desk.account().client(), "received")
    stub.accounts.clear()  # the request may have come through all the same, as nobody had hung up yet
    key = desk.files.load()
    assert key is not None

    await desk.account().client()

    assert knows(stub, key.key)


async def test_an_account_for_a_dry_run_is_not_kept(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """Contract, section 1: `renew --dry-run`."""
    account = desk.account(kept=False)
    client = await account.client()

    assert stub.accounts[0].url == client.account_url
    assert not desk.directory.exists()
    assert not await account.is_stored()


async def test_whether_it_is_on_disk(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """With its name: a key alone is not an account yet."""
    account = desk.account()
    assert not await account.is_stored()
    desk.files.save(generate_key("ecdsa-p256"), None, ())
    assert not await account.is_stored()
    await account.client()
    assert await account.is_stored()


# ------------------------------------------------------------------------------------------------------ what it takes


async def test_terms_that_are_not_agreed_to(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """Nobody agrees to anything in the operator's name: it says where they are, and what to set."""
    with pytest.raises(AcmeError, match=r"https://ca\.test/terms: read them, and set acme\.agree_to_terms"):
        await desk.account(agree_to_terms=False).client()
    assert stub.count("newAccount") == 0

    await desk.account().client()

    assert len(stub.accounts) == 1


async def test_an_external_account_is_bound(runner: asyncio.Runner, stub: AcmeStub, desk: Desk, tmp_path: Path) -> None:
    """RFC 8555 section 7.3.4, with what the CA has given to its customer."""
    stub.eab = {"customer-7": MAC_KEY}
    path = tmp_path / "hmac"
    path.write_text(f"{MAC_KEY}\n")
    await desk.account(eab_kid="customer-7", eab_hmac_file=path).client()

    assert [known.eab for known in stub.accounts] == ["customer-7"]


async def test_one_that_is_missing_is_asked_for(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """By the keys of the configuration."""
    stub.eab = {"customer-7": MAC_KEY}
    with pytest.raises(AcmeError, match=r"get acme\.eab_kid and acme\.eab_hmac_file at https://ca\.test/"):
        await desk.account().client()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"acme\.eab_hmac_file: \S*/hmac cannot be read: No such file or directory"),
        ("c2VjcmV0ÿ".encode("latin-1"), r"acme\.eab_hmac_file: \S*/hmac is not base64url text"),
        (b"c2VjcmV0 is the key", r"acme\.eab_hmac_file does not hold base64url"),
        (b"", r"acme\.eab_hmac_file does not hold base64url"),
        (b"c2VjcmV0" * 1000, r"acme\.eab_hmac_file does not hold base64url"),
    ],
    ids=["missing", "not text", "not base64url", "empty", "too long"],
)
async def test_the_file_with_its_key_is_not_shown(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk, tmp_path: Path, content: bytes | None, words: str
) -> None:
    """What is wrong with it is told without what is in it."""
    stub.eab = {"customer-7": MAC_KEY}
    path = tmp_path / "hmac"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((AcmeError, StoreError), match=words) as caught:
        await desk.account(eab_kid="customer-7", eab_hmac_file=path).client()

    error: BaseException | None = caught.value
    while error is not None:
        assert "c2VjcmV0" not in f"{error} {error!r}"
        error = error.__cause__
    assert stub.accounts == []


async def test_a_key_that_the_ca_does_not_take(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk, tmp_path: Path
) -> None:
    """Told in the CA's words, and once it is right, the account is made."""
    stub.eab = {"customer-7": MAC_KEY}
    path = tmp_path / "hmac"
    path.write_text(urlsafe_b64encode(bytes(32)).decode())
    account = desk.account(eab_kid="customer-7", eab_hmac_file=path)
    with pytest.raises(Problem):
        await account.client()
    path.write_text(MAC_KEY)
    await account.client()

    assert len(stub.accounts) == 1


# ------------------------------------------------------------------------------------------------------------ contact


async def test_another_contact_is_one_update(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """RFC 8555 section 7.3.2: told once, not at each start."""
    await desk.account().client()
    other = ("mailto:other@example.test",)
    for _ in range(3):
        await desk.account(contact=other).client()

    assert stub.payloads("account") == [{"contact": list(other)}]
    assert stub.accounts[0].contact == list(other)


async def test_no_contact_any_more_is_an_update_too(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """`email` taken out of the file: the CA is to forget it."""
    await desk.account().client()
    await desk.account(contact=()).client()

    assert stub.accounts[0].contact == []


async def test_an_account_that_is_found_gets_the_contact_too(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk
) -> None:
    """Its key may have been another program's, and the file may have changed since a crash."""
    await dies(stub, "newAccount", desk.account().client(), "carried out")
    other = ("mailto:other@example.test",)
    await desk.account(contact=other).client()

    assert stub.accounts[0].contact == list(other)


async def test_a_contact_that_is_refused_is_no_reason_not_to_renew(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 8555 section 6.7: invalidContact. It is told, and tried again at the next start."""
    await desk.account().client()
    stub.fail("account", status=400, problem="invalidContact", times=None)
    other = ("mailto:other@localhost",)
    client = await desk.account(contact=other).client()

    assert client.account_url == stub.accounts[0].url
    assert "the CA does not take acme.email: invalidContact: scripted invalidContact" in caplog.text
    stub.heal()
    await desk.account(contact=other).client()
    assert stub.accounts[0].contact == list(other)


# ---------------------------------------------------------------------------------------------- unknown to the CA


async def test_one_that_the_ca_has_lost_is_made_again(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """accountDoesNotExist (RFC 8555 section 6.7): of a test CA that was set up anew. The key stays."""
    account = desk.account()
    client = await account.client()
    stub.forget()
    with pytest.raises(Problem) as caught:
        await client.order(f"{stub.base_url}/order/1")
    assert is_unknown_account(caught.value)

    await account.unknown(client)
    again = await account.client()

    assert again.account_url == stub.accounts[0].url == desk.url()
    assert again.thumbprint == client.thumbprint


async def test_one_whose_contact_changes_is_made_again_too(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """The first that hears of it may be who has another contact to tell."""
    await desk.account().client()
    stub.forget()
    other = ("mailto:other@example.test",)
    client = await desk.account(contact=other).client()

    assert client.account_url == stub.accounts[0].url == desk.url()
    assert stub.accounts[0].contact == list(other)
    await works(client)


async def test_of_several_that_are_told_so_one_sees_to_it(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """Those that come later find it done, and what the first one goes on with is not cut off."""
    account = desk.account()
    client = await account.client()
    stub.forget()
    await account.unknown(client)
    again = await account.client()
    await account.unknown(client)

    assert await account.client() is again
    assert len(stub.accounts) == 1
    with pytest.raises(Problem, match="accountDoesNotExist"):  # and not that it is closed
        await client.order(f"{stub.base_url}/order/1")


async def test_other_errors_are_not_about_the_account(runner: asyncio.Runner) -> None:
    """Only what the CA says in so many words."""
    assert not is_unknown_account(CaUnreachable("accountDoesNotExist"))
    assert not is_unknown_account(Problem(type="urn:ietf:params:acme:error:unauthorized", detail="no", status=401))


# --------------------------------------------------------------------------------------------------------- another key


async def test_another_key(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """RFC 8555 section 7.3.5: the account stays, and the next process has the new key."""
    account = desk.account()
    client = await account.client()
    url, before = client.account_url, client.key
    await account.roll_over()

    stored = desk.files.load()
    assert stored is not None
    assert (stored.url, stored.contact) == (url, CONTACT)
    assert knows(stub, stored.key)
    assert thumbprint(stored.key) != thumbprint(before)
    for each in (account, desk.account()):
        await works(await each.client())


async def works(client: Client) -> None:
    await client.new_order(["a.test"])


@pytest.mark.parametrize(("when", "is_new"), [("received", False), ("carried out", True)])
async def test_a_crash_while_the_key_is_changed_loses_neither(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk, when: str, is_new: bool
) -> None:
    """Both are on disk, and the CA is asked which one it knows."""
    account = desk.account()
    before = (await account.client()).key
    if when == "received":  # and never carried out
        stub.fail("keyChange", status=500)
    await dies(stub, "keyChange", account.roll_over(), when)
    assert desk.files.next_key() is not None

    client = await desk.account().client()

    await works(client)
    assert knows(stub, client.key)
    assert (thumbprint(client.key) != thumbprint(before)) is is_new
    assert desk.files.next_key() is None


@pytest.mark.parametrize("lost", ["the answer", "the request"])
async def test_a_change_that_failed_is_looked_into_before_anything_else(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk, lost: str
) -> None:
    """A second change must not put its key where the only one is that the CA knows."""
    account = desk.account()
    await account.client()
    if lost == "the answer":
        stub.cut("keyChange")
    else:
        stub.fail("keyChange", status=503)
    with pytest.raises(AcmeError):
        await account.roll_over()
    await account.roll_over()

    client = await account.client()
    await works(client)
    stored = desk.files.load()
    assert stored is not None
    assert knows(stub, stored.key)


async def test_a_disk_that_fails_after_the_ca_has_agreed(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new key is on disk under its other name, and found there."""

    def fail(_: AccountFiles) -> None:
        raise StoreError("the disk is gone")

    account = desk.account()
    await account.client()
    with monkeypatch.context() as patch:
        patch.setattr(AccountFiles, "adopt_next_key", fail)
        with pytest.raises(StoreError):
            await account.roll_over()

    client = await account.client()
    await works(client)
    assert knows(stub, client.key)


async def test_another_process_waits_for_the_change(
    runner: asyncio.Runner, stub: AcmeStub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would find the new key, hear from the CA that it is nobody's, and throw it away a moment too soon."""
    account = desk.account()
    await account.client()
    let = stub.hang("keyChange")
    asked_before = stub.count("newAccount")
    in_vain: list[bool] = []
    try_acquire = durable.Lock.try_acquire

    def watched(lock: durable.Lock) -> bool:
        taken = try_acquire(lock)
        if not taken:
            in_vain.append(True)
        return taken

    monkeypatch.setattr(durable.Lock, "try_acquire", watched)

    async def other() -> Client:
        await until(lambda: stub.count("keyChange"), "the change is under way")
        return await desk.account().client()

    async def let_go() -> None:
        await until(lambda: len(in_vain) >= 3, "the other waits")
        let.set()

    _, client, _ = await asyncio.gather(account.roll_over(), other(), let_go())

    assert stub.count("newAccount") == asked_before
    await works(client)
    await works(await account.client())


# -------------------------------------------------------------------------------------------------------- left behind


def acme_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "acme"}


@pytest.mark.parametrize("when", ["found", "made", "updated", "for a dry run"])
async def test_who_fails_leaves_no_thread_behind(runner: asyncio.Runner, stub: AcmeStub, desk: Desk, when: str) -> None:
    """It is tried again for weeks, with as many clients as there are attempts."""
    if when == "found":
        desk.files.save(generate_key("ecdsa-p256"), None, ())
    if when == "updated":
        await desk.account().client()
        await desk.accounts.pop().close()
        stub.fail("account", times=None, status=503)
        stub.cut("account", times=None)
    before = acme_threads()
    stub.cut("newAccount", times=None)
    account = desk.account(contact=("mailto:other@example.test",), kept=when != "for a dry run")
    with pytest.raises(AcmeError):
        await account.client()

    await until(lambda: acme_threads() <= before, "the thread has ended")


async def test_nothing_of_a_failure_is_on_disk(runner: asyncio.Runner, stub: AcmeStub, desk: Desk) -> None:
    """But for the key, which is taken the next time."""
    stub.fail("newAccount", times=2)
    account = desk.account()
    for _ in range(2):
        with pytest.raises(AcmeError):
            await account.client()

    assert sorted(path.rpartition("/")[2] for path in contents(desk.directory)) == ["account.json", "key.pem", "lock"]
    assert desk.url() is None
    await account.client()
    assert len(stub.accounts) == 1
