"""What is kept on disk: accounts with their keys, and for each certificate what was issued and what is known of it.

    state_dir/                     0700, and so is every directory in it; files are 0600
      accounts/HOST-HASH/          of one ACME directory: its host, and 8 digits of the SHA-256 of its URL
        key.pem  account.json      the account's key; its URL, and which key that is for
        next.pem                   during a key rollover: the key that may already be the account's
      certificates/NAME/
        0001.pem 0002.pem          one file for each generation: key, leaf, chain, so never of two; the last two stay
        state.json                 `CertificateState`
        order.json                 `PendingOrder`, until the certificate is stored
        lock                       whoever orders holds it

Disk is the truth: whoever wants to know reads it again. Every file is there whole or not at all (`durable`). All of it
blocks, and is for a thread; only `lock`, `account` and `certificate` are not, they do nothing yet.

What cannot be read for a reason of the machine's (rights, a broken disk) is a StoreError, never "there is none". What
can be read and makes no sense is reported, set aside as FILE.broken, and done without: one file must not keep the
others from working.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pwd
import re
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sniproxy import durable
from sniproxy.bundle import MAX_PEM_BYTES, Bundle, PrivateKey, key_pem, load_key
from sniproxy.errors import BundleError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_JSON_BYTES: Final = 256 * 1024
"""Of a file that is read. A hundred names of 253 characters and all texts at their longest stay below half of it."""

MAX_TEXT_CHARS: Final = 4096
"""Of an error or a URL that is kept of a certificate: the words are a CA's, and it has no such bound."""

LEFTOVER_SECONDS: Final = 3600.0
"""Older than this, a temporary is nobody's: writing one takes milliseconds, or the minute of a disk that hangs."""

MAX_WARNED: Final = 1000
"""Warnings that are remembered so as not to be repeated; after so many it begins anew."""

_KEPT = 2
_KEY, _NEXT, _ACCOUNT = "key.pem", "next.pem", "account.json"
_STATE, _ORDER, _LOCK, _BROKEN = "state.json", "order.json", "lock", ".broken"

# As in the configuration, or an address, "::1"; what is not so cannot have come from there.
_is_name = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,199}").fullmatch
_is_generation = re.compile(r"([0-9]{4,})\.pem").fullmatch
_not_for_names = re.compile(r"[^a-z0-9.:_-]|^[.-]")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAccount:
    """An account's key, and what the CA calls the account: None while that is not known for this key."""

    key: PrivateKey = field(repr=False)
    url: str | None = None
    contact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingOrder:
    """An order under way, and the key of its CSR: the certificate can still be had after a restart.

    replaces: the id of the certificate that it is to follow (RFC 9773 section 5), None without.
    """

    url: str
    key: PrivateKey = field(repr=False)
    names: tuple[str, ...]
    directory: str
    profile: str = ""
    replaces: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateState:
    """What is known of a certificate beside itself. Instants are aware; None where there was none yet.

    names, directory: what was ordered last, and where. ari_*: the CA's last answer about renewal (RFC 9773), of the
    certificate with that id, and the instant chosen from it. failures: orders in a row that came to nothing;
    failed_challenge: the type the last of them failed at, or empty. issued_reason: a `Reason`. deployed_serial: of the
    certificate that was last proven to be served, in hex.
    """

    names: tuple[str, ...] = ()
    directory: str = ""
    ari_start: datetime | None = None
    ari_end: datetime | None = None
    ari_explanation_url: str = ""
    ari_at: datetime | None = None
    ari_certificate_id: str | None = None
    ari_checked_at: datetime | None = None
    ari_next_check: datetime | None = None
    ari_failures: int = 0
    failures: int = 0
    next_attempt: datetime | None = None
    last_attempt: datetime | None = None
    last_error: str | None = None
    failed_challenge: str = ""
    issued_at: datetime | None = None
    issued_reason: str = ""
    deployed_serial: str | None = None
    deployed_at: datetime | None = None
    delivery_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _AccountRecord:
    """account.json. `key` says for which key the URL is: the two files are not written at the same moment."""

    url: str | None = None
    contact: tuple[str, ...] = ()
    directory: str = ""
    key: str = ""


JsonT = TypeVar("JsonT", PendingOrder, CertificateState, _AccountRecord)


class _Broken(Exception):
    """A file's content makes no sense. The text says why, and shows nothing of it."""


class _Reports:
    """Tells of what is broken, once: files are read again and again."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._told: set[str] = set()

    def __call__(self, text: str) -> None:
        if text in self._told:
            return
        if len(self._told) >= MAX_WARNED:
            self._told.clear()
        self._told.add(text)
        self._warn(text)


class Store:
    """Everything below one `state_dir`. `warn` is told in words of files that are broken; it may come from any thread.

    Several may be open on one directory, in several processes: whoever orders holds the certificate's lock.
    sets_aside: whether files that are broken are; False for those who only want to look.
    """

    def __init__(self, root: Path, warn: Callable[[str], None], *, sets_aside: bool = True) -> None:
        self.root = root
        self._sets_aside = sets_aside
        self._accounts, self._certificates = root / "accounts", root / "certificates"
        self._report = _Reports(warn)

    def prepare(self) -> list[str]:
        """Makes what is missing, takes from others what rights they have, removes what killed processes left.

        Returns what an operator should know; a certificate whose files are not in order does not concern the others.
        Raises StoreError, saying what to do, where nothing at all could be kept.
        """
        warnings: list[str] = []
        for directory in (self.root, self._accounts, self._certificates):
            with _wrapped("made", directory):
                if durable.make_directory(directory):
                    warnings.append(f"{directory} was open to others; its mode is 0700 now")
            _check_rights(directory)
        with _wrapped("read", self.root):
            owner = self.root.stat().st_uid
            below = [path for each in (self._accounts, self._certificates) for path in sorted(each.iterdir())]
        if os.geteuid() == 0 and owner != 0:
            them = _user(owner)
            warnings.append(
                f"{self.root} belongs to {them}, who cannot read what root writes there, and this is root: run it as "
                f"{them}, or `chown -R {them} {self.root}` afterwards"
            )
        for path in below:
            try:
                warnings += _in_order(path)
            except OSError as error:
                warnings.append(_words("put in order", path, error))
        return warnings

    def account(self, directory_url: str) -> AccountFiles:
        """The files of the account at this ACME directory."""
        host = _not_for_names.sub("_", urlsplit(directory_url).hostname or "directory")[:180]
        digits = hashlib.sha256(directory_url.encode()).hexdigest()[:8]
        directory = self._accounts / f"{host}-{digits}"
        return AccountFiles(self.root, directory, self._report, directory_url, sets_aside=self._sets_aside)

    def certificate(self, name: str) -> CertificateFiles:
        """The files of the certificate of this name. Raises StoreError for what cannot be a name."""
        if not _is_name(name):
            raise StoreError(f"{name!r} cannot be the name of a certificate")
        return CertificateFiles(self.root, self._certificates / name, self._report, sets_aside=self._sets_aside)

    def certificate_names(self) -> list[str]:
        """The certificates there is something of, in alphabetical order. Raises StoreError."""
        with _wrapped("read", self._certificates):
            try:
                return sorted(
                    path.name for path in self._certificates.iterdir() if _is_name(path.name) and path.is_dir()
                )
            except FileNotFoundError:
                return []


class _Files:
    """One directory of the store, made when something is first put there."""

    def __init__(self, root: Path, directory: Path, report: _Reports, *, sets_aside: bool) -> None:
        self.directory = directory
        self._root = root
        self._report = report
        self._sets_aside = sets_aside

    def lock(self) -> durable.Lock:
        """The lock of these files, not taken yet. Taking it raises StoreError where that cannot be tried."""
        return _Lock(self.directory / _LOCK, self._make_directory)

    def _make_directory(self) -> None:
        for directory in (self._root, self.directory.parent, self.directory):
            durable.make_directory(directory)

    def _write(self, name: str, content: bytes) -> None:
        path = self.directory / name
        with _wrapped("written", path):
            self._make_directory()
            durable.write(path, content)

    def _remove(self, name: str) -> None:
        path = self.directory / name
        with _wrapped("removed", path):
            durable.remove(path)

    def _read(self, name: str, max_bytes: int) -> bytes | None:
        """None: there is none. Raises StoreError; _Broken where it can be none of ours."""
        path = self.directory / name
        with _wrapped("read", path):
            try:
                return durable.read(path, max_bytes)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno not in (errno.EFBIG, errno.EINVAL):
                    raise
                reason = (error.strerror or "").lower()
        raise _Broken(reason)

    def _load(self, name: str, max_bytes: int, parse: Callable[[bytes], T], consequence: str) -> T | None:
        """None: there is none, or it is broken, and has been set aside if it is to be. Raises StoreError."""
        try:
            content = self._read(name, max_bytes)
            return None if content is None else parse(content)
        except _Broken as broken:
            text = f"{self.directory / name} is broken ({broken})"
        if not self._sets_aside:
            self._report(f"{text}: {consequence}")
            return None
        aside = f"{name}{_BROKEN}"
        try:
            durable.rename(self.directory / name, aside)
        except OSError as error:
            self._report(f"{text} and cannot be set aside ({error.strerror}): {consequence}")
        else:
            self._report(f"{text}: set aside as {aside}, {consequence}")
        return None


class AccountFiles(_Files):
    """The account at one ACME directory."""

    def __init__(self, root: Path, directory: Path, report: _Reports, directory_url: str, *, sets_aside: bool) -> None:
        super().__init__(root, directory, report, sets_aside=sets_aside)
        self.directory_url = directory_url

    def load(self) -> StoredAccount | None:
        """The account; without its URL where that is not of this very key, as after a crash. Raises StoreError."""
        consequence = "the account is looked up by its key"
        record = self._load(_ACCOUNT, MAX_JSON_BYTES, partial(_decode, _AccountRecord), consequence)
        key = self._key(_KEY, "there will be a new account")
        if key is None:
            if record is not None:
                self._report(f"{self.directory / _KEY} is not there any more: there will be a new account")
            return None
        if record is None:
            return StoredAccount(key=key)
        url = record.url if record.key == _fingerprint(key) else None
        return StoredAccount(key=key, url=url, contact=record.contact)

    def save(self, key: PrivateKey, url: str | None, contact: tuple[str, ...]) -> None:
        """Keeps the account; its key is on disk before anything that is said about it. Raises StoreError."""
        if not self._is_kept(key):
            self._write(_KEY, key_pem(key))
        self._save_record(key, url, contact)

    def next_key(self) -> PrivateKey | None:
        """The key that the account was about to get: after a crash, only the CA knows if it has. Raises StoreError."""
        return self._key(_NEXT, "the account keeps the key it has")

    def save_next_key(self, key: PrivateKey) -> None:
        """Keeps a new key beside the account's: to be done before the CA hears of it. Raises StoreError."""
        self._write(_NEXT, key_pem(key))

    def adopt_next_key(self) -> None:
        """The next key is the account's from now on. Raises StoreError."""
        key = self.next_key()
        if key is None:
            raise StoreError(f"{self.directory / _NEXT} is not there: there is no key to change to")
        account = self.load()
        with _wrapped("adopted", self.directory / _NEXT):
            durable.rename(self.directory / _NEXT, _KEY)
        if account is not None:
            self._save_record(key, account.url, account.contact)

    def drop_next_key(self) -> None:
        """The account keeps the key it has. Raises StoreError."""
        self._remove(_NEXT)

    def _save_record(self, key: PrivateKey, url: str | None, contact: tuple[str, ...]) -> None:
        record = _AccountRecord(url=url, contact=contact, directory=self.directory_url, key=_fingerprint(key))
        self._write(_ACCOUNT, _encode(record))

    def _is_kept(self, key: PrivateKey) -> bool:
        try:
            return self._read(_KEY, MAX_PEM_BYTES) == key_pem(key)
        except _Broken:
            return False

    def _key(self, name: str, consequence: str) -> PrivateKey | None:
        return self._load(name, MAX_PEM_BYTES, _parse_key, consequence)


class CertificateFiles(_Files):
    """One certificate: what was issued, what is known of it, and the order under way."""

    @property
    def name(self) -> str:
        return self.directory.name

    def generations(self) -> list[int]:
        """The numbers of those that are on disk, broken ones too, the newest first. Raises StoreError."""
        with _wrapped("read", self.directory):
            try:
                names = os.listdir(self.directory)  # noqa: PTH208  names are all that is wanted
            except FileNotFoundError:
                return []
        numbers = (int(match[1]) for name in names if (match := _is_generation(name)))
        return sorted((number for number in numbers if _generation(number) in names), reverse=True)

    def current(self) -> Bundle | None:
        """The newest that is not broken; None where there is none. Raises StoreError."""
        return next((bundle for _, bundle in self._good()), None)

    def previous(self) -> Bundle | None:
        """The one before that; None where there is none. Raises StoreError."""
        return next((bundle for _, bundle in islice(self._good(), 1, None)), None)

    def save(self, bundle: Bundle) -> int:
        """Adds a generation, and returns its number; those before the last two are removed. Raises StoreError."""
        number = max(self.generations(), default=0) + 1
        self._write(_generation(number), bundle.pem)
        try:
            self._prune()
        except StoreError as error:
            # What counts is there.
            self._report(f"an old generation stays: {error}")
        return number

    def state(self) -> CertificateState:
        """What is known of it; a blank one where there is none. Raises StoreError."""
        consequence = "failures and renewal times begin anew"
        found = self._load(_STATE, MAX_JSON_BYTES, partial(_decode, CertificateState), consequence)
        return CertificateState() if found is None else found

    def save_state(self, state: CertificateState) -> None:
        """Texts are cut at MAX_TEXT_CHARS. Raises StoreError."""
        self._write(_STATE, _encode(state))

    def order(self) -> PendingOrder | None:
        """The order under way. Raises StoreError."""
        consequence = "a new order is made"
        return self._load(_ORDER, MAX_JSON_BYTES, partial(_decode, PendingOrder), consequence)

    def save_order(self, order: PendingOrder) -> None:
        """To be done before the order is finalized. Raises StoreError."""
        self._write(_ORDER, _encode(order))

    def forget_order(self) -> None:
        """Once its certificate is stored, or nothing will come of it; fine if there is none. Raises StoreError."""
        self._remove(_ORDER)

    def remove(self) -> None:
        """Removes all there is of this certificate, for whoever holds its lock. Raises StoreError.

        What others have put there stays, and the directory with it.
        """
        names = [_STATE, _ORDER, f"{_STATE}{_BROKEN}", f"{_ORDER}{_BROKEN}", *map(_generation, self.generations())]
        for name in [*names, _LOCK]:
            self._remove(name)
        with _wrapped("removed", self.directory):
            try:
                durable.remove_leftovers(self.directory, 0)
                self.directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                self._report(f"{self.directory} stays: there are files in it that are not sniproxy's")

    def _good(self) -> Iterator[tuple[int, Bundle]]:
        """Those that are not broken, the newest first."""
        for number in self.generations():
            try:
                content = self._read(_generation(number), MAX_PEM_BYTES)
                if content is None:
                    continue  # removed just now, so there are two newer ones
                bundle = _parse_bundle(content)
            except _Broken as broken:
                self._report(f"{self.directory / _generation(number)} is broken ({broken}), and not used")
                continue
            yield number, bundle

    def _prune(self) -> None:
        """Removes what is older than the last two that are good; broken ones among those stay to be looked at."""
        good = [number for number, _ in islice(self._good(), _KEPT)]
        for number in self.generations():
            if len(good) == _KEPT and number < good[-1]:
                self._remove(_generation(number))


class _Lock(durable.Lock):
    """In a directory that is made when it is first taken; its errors are StoreError."""

    def __init__(self, path: Path, make_directory: Callable[[], None]) -> None:
        super().__init__(path)
        self._make_directory = make_directory

    def try_acquire(self) -> bool:
        with _wrapped("locked", self.path):
            self._make_directory()
            return super().try_acquire()


# ------------------------------------------------------------------ what files hold


def _generation(number: int) -> str:
    return f"{number:04}.pem"


def _parse_bundle(content: bytes) -> Bundle:
    reason = "cut off"
    try:
        bundle = Bundle.parse(content)
        # Whatever begins was read: parse passes over a certificate whose end is missing.
        if content.count(b"-----BEGIN ") == 1 + len(bundle.chain):
            return bundle
    except BundleError as error:
        reason = str(error)
    # Out here, because an exception holds on to the one that it was raised in, and that may hold what it choked on.
    raise _Broken(reason)


def _parse_key(content: bytes) -> PrivateKey:
    try:
        return load_key(content)
    except BundleError as error:
        reason = str(error)
    raise _Broken(reason)


def _fingerprint(key: PrivateKey) -> str:
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def _encode(value: PendingOrder | CertificateState | _AccountRecord) -> bytes:
    """As JSON that people can read; times as in RFC 3339, UTC."""
    document = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, CertificateState):
        document = {name: item[:MAX_TEXT_CHARS] if isinstance(item, str) else item for name, item in document.items()}
    return json.dumps(document, indent=2, default=_plain).encode() + b"\n"


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        assert value.tzinfo is not None, "a time without a zone is nobody's"
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    assert isinstance(value, PrivateKey)
    return key_pem(value).decode()


def _decode(kind: type[JsonT], content: bytes) -> JsonT:
    """Reads what `_encode` has written. Keys it does not know are passed over: a newer version wrote them."""
    document = _document(content)
    values: dict[str, Any] = {}
    for each in fields(kind):
        if each.name not in document:
            continue
        with suppress(ValueError, OverflowError):
            values[each.name] = _READ[str(each.type)](document[each.name])
            continue
        raise _Broken(f'"{each.name}" makes no sense')
    with suppress(TypeError):
        return kind(**values)
    raise _Broken("something is missing in it")


def _document(content: bytes) -> dict[str, object]:
    reason = "not a JSON object"
    try:
        document = json.loads(content)
        if isinstance(document, dict):
            return document
    except json.JSONDecodeError as error:
        reason = f"not JSON from line {error.lineno}, column {error.colno} on"
    except (ValueError, RecursionError):
        reason = "not JSON"
    raise _Broken(reason)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004  what is wrong with the value is all the same
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError  # noqa: TRY004
    return tuple(map(_text, value))


def _count(value: object) -> int:
    if type(value) is not int or value < 0:  # True is an int, and no count
        raise ValueError
    return value


def _time(value: object) -> datetime:
    time = datetime.fromisoformat(_text(value))
    if time.tzinfo is None:
        raise ValueError
    return time.astimezone(UTC)


def _key_of_text(value: object) -> PrivateKey:
    try:
        return load_key(_text(value).encode())
    except BundleError:
        raise ValueError from None


def _or_none(read: Callable[[object], T]) -> Callable[[object], T | None]:
    return lambda value: None if value is None else read(value)


_READ: Final[dict[str, Callable[[object], object]]] = {
    "PrivateKey": _key_of_text,
    "datetime | None": _or_none(_time),
    "int": _count,
    "str": _text,
    "str | None": _or_none(_text),
    "tuple[str, ...]": _texts,
}
"""By the annotation of a field."""


# ------------------------------------------------------------------ whose files, and with which rights


def _in_order(path: Path) -> list[str]:
    """Sees to one directory of the store, and says what was not as it should be. Raises OSError."""
    if not _is_name(path.name) or path.is_symlink() or not path.is_dir():
        return [f"{path} is not sniproxy's, and left alone"]
    warnings = []
    if durable.make_directory(path):
        warnings.append(f"{path} was open to others; its mode is 0700 now")
    durable.remove_leftovers(path, LEFTOVER_SECONDS)
    for file in sorted(path.iterdir()):
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            continue
        if os.geteuid() not in (0, status.st_uid):
            warnings.append(f"{file} belongs to {_user(status.st_uid)}, and this is {_user(os.geteuid())}")
        elif status.st_mode & 0o077:
            file.chmod(0o600)
            warnings.append(f"{file} was open to others; its mode is 0600 now, but a key in it should be replaced")
    return warnings


def _check_rights(directory: Path) -> None:
    if os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return
    read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
    code = errno.EROFS if read_only else errno.EACCES
    error = OSError(code, os.strerror(code))
    raise StoreError(_words("written to", directory, error))


@contextmanager
def _wrapped(done: str, path: Path) -> Iterator[None]:
    """An OSError in here becomes a StoreError: the path cannot be … (read, written)."""
    try:
        yield
    except OSError as error:
        raise StoreError(_words(done, path, error)) from error


def _words(done: str, path: Path, error: OSError) -> str:
    # It takes rights to a directory to change what it has, and to a file to read it.
    where = path.parent if done in ("made", "written", "removed", "adopted") else path
    return f"{path} cannot be {done}: {error.strerror or error}{_hint(where, error)}"


def _hint(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return _who_may(path)
        case errno.ENOSPC | errno.EDQUOT:
            return " (make room there; what is there is as it was)"
        case errno.EROFS:
            return " (after an error of the disk `dmesg` says more; under systemd, see StateDirectory= of the unit)"
        case errno.EIO:
            return " (the disk fails: see `dmesg`)"
        case _:
            return ""


def _who_may(path: Path) -> str:
    """Whose rights stand in the way: those of the file, or of the directory above that can be looked at."""
    us = _user(os.geteuid())
    for each in (path, *path.parents):
        try:
            status = each.stat()
        except OSError:
            continue
        owner, mode = _user(status.st_uid), stat.S_IMODE(status.st_mode)
        # No command: what would have to change may be a directory of the system's.
        return (
            f" ({each} belongs to {owner} and has mode {mode:04o}; this is {us}: make acme.state_dir and all in it "
            f"{us}'s, or run as {owner})"
        )
    return ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
