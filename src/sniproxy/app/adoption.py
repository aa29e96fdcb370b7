"""Taking over from certbot: what of it goes into the store, what into the configuration, and what has to be told.

First everything is looked at (`examine`, with the rights to read certbot's files), then it is stored (`carry_over`, as
whoever the proxy runs as). Neither touches certbot's directory; both may be done again at any time.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import ValidationError

from sniproxy.acme.store import CertificateState, Store
from sniproxy.app import certbot
from sniproxy.app.certbot import BrokenLineage, CertbotError, Lineage
from sniproxy.app.rights import hand_over
from sniproxy.bundle import check_issued, key_pem, printable
from sniproxy.config.certificates import DIRECTORIES, Certificate
from sniproxy.config.wording import shown
from sniproxy.errors import BadCertificate, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from sniproxy.app.certbot import CertbotAccount
    from sniproxy.bundle import Bundle
    from sniproxy.config import Config
    from sniproxy.durable import Lock

_HOOK_ADVICE = {
    "pre": "nothing has to be stopped for a validation",
    "deploy": "HAProxy gets certificates without it; what else it does goes into [hooks], on_renewed",
    "post": "nothing has to be started again; what else it does goes into [hooks], on_renewed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One line for the operator. is_failure: something that should have been carried over was not."""

    text: str
    is_failure: bool = False

    def __post_init__(self) -> None:
        # Names of files, names in certificates, shell commands: they may hold anything.
        object.__setattr__(self, "text", printable(self.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What there is to carry over, and what has to be told.

    certificates: lineages, each with the entry of the configuration that it belongs to. account: the one at the
    configuration's directory; None where there is none. toml: what is missing in the configuration; empty for nothing.
    """

    certificates: tuple[tuple[Lineage, Certificate], ...]
    account: CertbotAccount | None
    toml: str
    remarks: tuple[Remark, ...]


def examine(root: Path, config: Config, now: datetime) -> Takeover:
    """Looks at all that certbot keeps in `root`. Raises CertbotError where that is not to be had at all."""
    remarks: list[Remark] = []
    usable: list[Lineage] = []
    for lineage in certbot.lineages(root):
        if isinstance(lineage, BrokenLineage):
            remarks.append(Remark(text=f"{lineage.name}: left out: {lineage.trouble}", is_failure=True))
        elif why_not := _why_left_out(lineage, config, now):
            remarks.append(why_not)
        else:
            usable.append(lineage)
    matched = _matched(usable, config)
    taken = [lineage for lineage, _ in matched]
    missing: list[Lineage] = []
    for lineage in usable:
        if lineage not in taken:
            remark = _about_unmatched(lineage, [*taken, *missing], config)
            if remark is None:
                missing.append(lineage)
            else:
                remarks.append(remark)
    kept = [*taken, *missing]
    account, about_account = _account(root, config, kept)
    remarks += about_account
    for lineage, entry in matched:
        remarks += _about_next(lineage, entry, config)
    remarks += _about_ways(kept)
    remarks += _about_hooks(root, kept)
    return Takeover(certificates=tuple(matched), account=account, toml=_toml(missing, config), remarks=tuple(remarks))


def carry_over(takeover: Takeover, config: Config, now: datetime, *, dry_run: bool) -> Iterator[Remark]:
    """Puts it into the store of the configuration; tells what came of each. With `dry_run` it only tells."""
    acme = config.acme
    if acme is None or not (takeover.certificates or takeover.account):
        return
    warnings: list[str] = []
    store = Store(acme.state_dir, warn=warnings.append)
    try:
        if not dry_run:
            warnings += store.prepare()
    except StoreError as error:
        yield Remark(text=str(error), is_failure=True)
        return
    if takeover.account is not None:
        try:
            yield Remark(text=_carry_account(takeover.account, store, dry_run=dry_run))
        except StoreError as error:
            yield Remark(text=f"account {takeover.account.identity}: {error}", is_failure=True)
    for lineage, entry in takeover.certificates:
        try:
            text = _carry_certificate(lineage, entry, store, acme.directory, now, dry_run=dry_run)
            yield Remark(text=f"{entry.name}: {text}")
        except StoreError as error:
            yield Remark(text=f"{entry.name}: {error}", is_failure=True)
    yield from (Remark(text=warning) for warning in warnings)


def make_state_dir(config: Config) -> None:
    """Makes the store's directory where that takes root, for the user that the proxy becomes. Raises StoreError."""
    if config.acme is None or os.geteuid() != 0:
        return
    path = config.acme.state_dir
    try:
        if not path.exists():
            path.mkdir(mode=0o700, parents=True)
            hand_over(path, config.proxy.user, config.proxy.group)
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}") from error


def key_type(bundle: Bundle) -> str:
    """As the configuration has it, "rsa-2048"; kinds that it does not have in the same form."""
    if isinstance(bundle.key, rsa.RSAPrivateKey):
        return f"rsa-{bundle.key.key_size}"
    curve = bundle.key.curve.name
    return {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384"}.get(curve, f"ecdsa-{curve}")


# ---------------------------------------------------------------------- which lineage is for what


def _why_left_out(lineage: Lineage, config: Config, now: datetime) -> Remark | None:
    """Why a lineage is of no use here; None if it is of use."""
    leaf = lineage.bundle.leaf
    wildcards = [name for name in leaf.names if "*" in name]
    if wildcards:
        reason = f"no challenge here can prove {', '.join(wildcards)}; list each name, or leave it to certbot"
    elif leaf.not_after <= now:
        reason = f"expired at {leaf.not_after:%Y-%m-%d %H:%M} UTC"
    elif lineage.is_staging and (config.acme is None or lineage.server != config.acme.directory):
        reason = f"from {lineage.server}, which is to try things out, and trusted by nobody"
    else:
        try:
            check_issued(lineage.bundle.key, lineage.bundle.chain, leaf.names, now)
        except BadCertificate as error:
            return Remark(text=f"{lineage.name}: left out: {error}", is_failure=True)
        return None
    return Remark(text=f"{lineage.name}: left out: {reason}")


def _matched(lineages: Sequence[Lineage], config: Config) -> list[tuple[Lineage, Certificate]]:
    """Each entry with the lineage for the same names: of its key type if there is one, then the newest."""
    left = list(lineages)
    chosen: dict[int, Lineage] = {}
    # Exact ones first: of two entries for the same names, none then takes what is the other's.
    for exactly in (True, False):
        for number, entry in enumerate(config.certificates):
            same = [
                lineage
                for lineage in left
                if set(lineage.bundle.leaf.names) == set(entry.names)
                and (not exactly or key_type(lineage.bundle) == entry.key_type)
            ]
            if same and number not in chosen:
                chosen[number] = max(same, key=lambda lineage: lineage.bundle.leaf.not_before)
                left.remove(chosen[number])
    return [(chosen[number], config.certificates[number]) for number in sorted(chosen)]


def _about_unmatched(lineage: Lineage, taken: Sequence[Lineage], config: Config) -> Remark | None:
    """Why a lineage that belongs to no entry should not get one; None if it should."""
    names = set(lineage.bundle.leaf.names)
    for other in taken:
        if set(other.bundle.leaf.names) == names:
            return Remark(text=f"{lineage.name}: left out: {other.name} is for the same names")
    for entry in config.certificates:
        if names & set(entry.names):
            text = (
                f"{lineage.name}: left out: it is for {', '.join(sorted(names))}, and {entry.name} in the "
                f"configuration for {', '.join(sorted(entry.names))}; with the same names it could be taken over"
            )
            return Remark(text=text)
    if _entry(lineage) is None:
        return Remark(text=f"{lineage.name}: left out: no [[certificates]] can be for {', '.join(sorted(names))}")
    return None


# ---------------------------------------------------------------------- what goes into the configuration


def _toml(lineages: Sequence[Lineage], config: Config) -> str:
    """Entries for lineages that have none, in the order of their names."""
    if not lineages:
        return ""
    used = {entry.name for entry in config.certificates}
    parts = [_acme_section(lineages)] if config.acme is None else []
    for lineage in lineages:
        entry = _entry(lineage)
        assert entry is not None
        name = entry.name or entry.names[0]
        while name in used:
            name += "-certbot"
        used.add(name)
        names = ", ".join(map(shown, entry.names))
        lines = ["[[certificates]]", f"name = {shown(name)}", f"names = [{names}]"]
        if entry.key_type:
            lines.append(f"key_type = {shown(entry.key_type)}")
        if entry.profile:
            lines.append(f"profile = {shown(entry.profile)}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _entry(lineage: Lineage) -> Certificate | None:
    """A lineage as an entry of the configuration, whose own rules decide what may stand there; None for never."""
    names = [name for name in lineage.bundle.leaf.names if name != lineage.name]
    if len(names) < len(lineage.bundle.leaf.names):
        names.insert(0, lineage.name)
    profile = _option(lineage, "required_profile") or _option(lineage, "preferred_profile")
    values: dict[str, object] = {}
    # One by one: names there must be, the others may fall back to the defaults.
    for key, value in (
        ("names", names),
        ("name", lineage.name),
        ("key_type", key_type(lineage.bundle)),
        ("profile", profile),
    ):
        try:
            Certificate.model_validate({"names": names, key: value})
        except ValidationError:
            if key == "names":
                return None
            continue
        values[key] = value
    return Certificate.model_validate(values)


def _acme_section(lineages: Sequence[Lineage]) -> str:
    server = Counter(lineage.server for lineage in lineages).most_common(1)[0][0]
    name = next((name for name, url in DIRECTORIES.items() if url == server), server)
    return (
        f"[acme]\ndirectory = {shown(name)}\n"
        "agree_to_terms = false    # true, once you do agree to the CA's terms of service, as you did with certbot"
    )


def _option(lineage: Lineage, key: str) -> str:
    value = lineage.parameters.get(key, "")
    return "" if value in ("None", "False") else value


# ---------------------------------------------------------------------- the account


def _account(root: Path, config: Config, lineages: Sequence[Lineage]) -> tuple[CertbotAccount | None, list[Remark]]:
    """The account that most certificates of our directory were ordered with; of several, the newest."""
    remarks = []
    directory = config.acme.directory if config.acme is not None else ""
    for server, count in Counter(lineage.server for lineage in lineages).items():
        if directory and server != directory:
            text = f"{_certificates(count)} from {server}: the account there is not that of acme.directory"
            remarks.append(Remark(text=f"{text}, which issues the next ones"))
    if not directory:
        return None, remarks
    try:
        identities = certbot.account_identities(root, directory)
        if not identities:
            remarks.append(Remark(text=f"no account at {directory}: there will be a new one"))
            return None, remarks
        used = Counter(lineage.account for lineage in lineages if lineage.server == directory)
        chosen = max(identities, key=lambda identity: used[identity])
        others = [identity for identity in identities if identity != chosen]
        account = certbot.account(root, directory, chosen)
    except CertbotError as error:
        return None, [*remarks, Remark(text=f"account: left out: {error}", is_failure=True)]
    remarks += [Remark(text=f"account {other}: left out: there is one account to a directory") for other in others]
    return account, remarks


def _certificates(count: int) -> str:
    return "1 certificate is" if count == 1 else f"{count} certificates are"


# ---------------------------------------------------------------------- what cannot be carried over


def _about_next(lineage: Lineage, entry: Certificate, config: Config) -> Iterator[Remark]:
    """What the next certificate of an entry will have otherwise."""
    has = key_type(lineage.bundle)
    if has != entry.key_type:
        yield Remark(text=f"{entry.name}: its key is {has}; the next one is {entry.key_type}, as configured")
    profile = _option(lineage, "required_profile") or _option(lineage, "preferred_profile")
    if profile != entry.profile:
        wanted = shown(profile) if profile else "the CA's default"
        yield Remark(text=f"{entry.name}: its profile was {wanted}; the next one's is as configured")
    chain = _option(lineage, "preferred_chain")
    if chain and config.acme is not None and chain != config.acme.preferred_chain:
        yield Remark(text=f"{entry.name}: its chain was to end at {shown(chain)}; that is acme.preferred_chain here")


def _about_ways(lineages: Sequence[Lineage]) -> Iterator[Remark]:
    """What certbot was told of how, which has no counterpart here, or needs none."""
    about: list[tuple[str, list[Lineage]]] = [
        (
            "names were proven by DNS; here that takes tls-alpn-01 or http-01, so they have to point to this machine",
            [lineage for lineage in lineages if lineage.uses_dns],
        ),
        (
            "names were proven by hand; here that is done by tls-alpn-01 or http-01, and by itself",
            [lineage for lineage in lineages if lineage.authenticator == "manual" and not lineage.uses_dns],
        ),
        (
            "webroot is not needed: validations are answered by the proxy itself",
            [lineage for lineage in lineages if lineage.authenticator == "webroot"],
        ),
        (
            "what certbot wrote into nginx's or Apache's configuration stays there",
            [lineage for lineage in lineages if {lineage.authenticator, lineage.installer} & {"nginx", "apache"}],
        ),
        (
            "the key was used again for each certificate (reuse_key); here each has its own: mind what pins it (TLSA)",
            [lineage for lineage in lineages if _option(lineage, "reuse_key")],
        ),
        (
            "must_staple is not asked for: CAs of the web no longer do that",
            [lineage for lineage in lineages if _option(lineage, "must_staple")],
        ),
        (
            "was not renewed by certbot (autorenew = False); here it is",
            [lineage for lineage in lineages if lineage.parameters.get("autorenew") == "False"],
        ),
    ]
    for text, concerned in about:
        if concerned:
            yield Remark(text=f"{', '.join(lineage.name for lineage in concerned)}: {text}")


def _about_hooks(root: Path, lineages: Sequence[Lineage]) -> Iterator[Remark]:
    for kind, advice in _HOOK_ADVICE.items():
        commands: dict[str, list[str]] = {}
        for lineage in lineages:
            if command := lineage.hook(kind):
                commands.setdefault(command, []).append(lineage.name)
        for command, names in commands.items():
            yield Remark(text=f"{', '.join(names)}: {kind} hook not carried over: {command} ({advice})")
    try:
        programs = certbot.hook_programs(root)
    except CertbotError as error:
        yield Remark(text=str(error))
        return
    for kind, paths in programs.items():
        for path in paths:
            yield Remark(text=f"{path}: {kind} hook not carried over ({_HOOK_ADVICE[kind]})")


# ---------------------------------------------------------------------- stored


def _carry_account(account: CertbotAccount, store: Store, *, dry_run: bool) -> str:
    """Returns what came of it. Raises StoreError."""
    files = store.account(account.directory)
    what = f"account {account.identity} at {account.directory}"
    stored = files.load()
    if stored is not None and key_pem(stored.key) != key_pem(account.key):
        return f"{what}: left out: the store has another account there already"
    if stored is not None and (stored.url is not None or account.url is None):
        return f"{what}: already there"
    if not dry_run:
        with _held(files.lock()):
            files.save(account.key, account.url, account.contact)
    return f"{what}: {'would be ' if dry_run else ''}taken over"


def _carry_certificate(
    lineage: Lineage, entry: Certificate, store: Store, directory: str, now: datetime, *, dry_run: bool
) -> str:
    """Returns what came of it. Raises StoreError."""
    files = store.certificate(entry.name)
    if dry_run:
        why_not = _why_kept(files.current(), files.state(), lineage, entry, directory=directory, now=now)
        return why_not or f"would be taken over from {lineage.name}{_left(lineage, now)}"
    with _held(files.lock()):
        current, state = files.current(), files.state()
        why_not = _why_kept(current, state, lineage, entry, directory=directory, now=now)
        if why_not is not None:
            return why_not
        if current is None or current.chain != lineage.bundle.chain:
            files.save(lineage.bundle)
        # One that was being ordered would replace it at once.
        files.forget_order()
        # With another directory it would be ordered anew at once, at ours; not being known where from, it is in time.
        known = directory if lineage.server == directory else ""
        files.save_state(CertificateState(names=entry.names, directory=known, issued_at=lineage.bundle.leaf.not_before))
    return f"taken over from {lineage.name}{_left(lineage, now)}"


def _why_kept(
    current: Bundle | None,
    state: CertificateState,
    lineage: Lineage,
    entry: Certificate,
    *,
    directory: str,
    now: datetime,
) -> str | None:
    """Why what the store has is not to be replaced; None if it is, or there is nothing."""
    if current is None or set(current.leaf.names) != set(entry.names) or state.directory not in ("", directory):
        return None
    if current.leaf.der == lineage.bundle.leaf.der:
        return "already there"
    if current.leaf.not_after > now and current.leaf.not_before >= lineage.bundle.leaf.not_before:
        return f"the store has a newer one than {lineage.name}, until {current.leaf.not_after:%Y-%m-%d %H:%M} UTC"
    return None


def _left(lineage: Lineage, now: datetime) -> str:
    leaf = lineage.bundle.leaf
    return f": serial {leaf.serial}, {(leaf.not_after - now).days} days left"


@contextmanager
def _held(lock: Lock) -> Iterator[None]:
    """Raises StoreError where somebody else holds it."""
    if not lock.try_acquire():
        raise StoreError("a sniproxy is ordering at this moment; do this again when it is done")
    try:
        yield
    finally:
        lock.release()
