"""What the CA says: its directory, our account there, and its clock. Nothing is ordered, and no account is made."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from sniproxy.acme.account import KEY_TYPE, MAX_HMAC_BYTES
from sniproxy.acme.client import Client
from sniproxy.acme.resources import AccountStatus
from sniproxy.app.doctor.diagnosis import Diagnosis, failed, good, skipped, warning
from sniproxy.app.threads import in_own_thread
from sniproxy.bundle import generate_key
from sniproxy.durable import read
from sniproxy.errors import AcmeError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sniproxy.acme.account import AccountSettings
    from sniproxy.acme.ordering import Wanted
    from sniproxy.acme.resources import Directory
    from sniproxy.acme.store import StoredAccount

ANSWER_SECONDS: Final = 30.0
"""For the directory, and as long again for the account: the client gives each of its requests 20 s."""

DISK_SECONDS: Final = 10.0

SKEW_WARNING_SECONDS: Final = 60.0
SKEW_FAILURE_SECONDS: Final = 3600.0
"""Beyond an hour, a new certificate seems not to be valid yet: CAs date them back by as much, and no more."""

DIRECTORY, ACCOUNT, CLOCK = "directory", "account", "clock"

_is_base64url = re.compile(rb"[A-Za-z0-9_-]{2,}={0,2}").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CaReport:
    """What the CA is known to be. directory: None where it did not answer. account_url: None without an account."""

    directory: Directory | None
    account_url: str | None
    diagnoses: tuple[Diagnosis, ...]


def is_public(settings: AccountSettings) -> bool:
    """Whether the CA is somewhere in the internet: trusted by everybody, and not of this machine or network."""
    host = urlsplit(settings.directory).hostname or ""
    try:
        return settings.ca_file is None and ip_address(host).is_global
    except ValueError:
        return settings.ca_file is None and host != "localhost"


async def ask_ca(
    settings: AccountSettings, wanted: Sequence[Wanted], stored: StoredAccount | None, unreadable: str = ""
) -> CaReport:
    """Asks the CA, with the account's key if there is one.

    unreadable: why it is not known whether there is one.
    """
    key = stored.key if stored is not None else generate_key(KEY_TYPE)
    client = Client(settings.directory, key, ca_file=settings.ca_file)
    try:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                directory = await client.directory()
        except (AcmeError, TimeoutError) as error:
            return _unreachable(settings, stored, error)
        url, account = await _account(client, stored, unreadable)
        has_account = url is not None
        diagnoses = [
            *await _binding(settings, directory, has_account=has_account),
            *_profiles(directory, wanted),
        ] or [good(DIRECTORY, _described(settings, directory))]
        return CaReport(directory=directory, account_url=url, diagnoses=(*diagnoses, account, clock(client.clock_skew)))
    finally:
        await client.close()


def clock(skew: float | None) -> Diagnosis:
    """Our clock, by the CA's. skew: seconds by which the CA's is ahead; None where it did not say."""
    if skew is None:
        return skipped(CLOCK, "the CA's answers have no date")
    apart = abs(skew)
    if apart < 2:  # dates are in whole seconds, and travel
        return good(CLOCK, "as the CA's")
    found = f"{_duration(apart)} {'behind' if skew > 0 else 'ahead of'} the CA's"
    advice = "set the clock, and have it kept: `timedatectl set-ntp true`"
    if apart > SKEW_FAILURE_SECONDS:
        return failed(CLOCK, found, f"{advice}; new certificates would seem not to be valid, or to be over")
    return warning(CLOCK, found, advice) if apart > SKEW_WARNING_SECONDS else good(CLOCK, found)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _unreachable(settings: AccountSettings, stored: StoredAccount | None, error: Exception) -> CaReport:
    found = str(error) or f"no answer within {ANSWER_SECONDS:g} s"
    advice = (
        f"try `curl {settings.directory}` as this user: it takes a way out (HTTPS_PROXY), DNS, and a certificate that"
        " is trusted (acme.ca_file)"
    )
    why = "the directory did not answer"
    return CaReport(
        directory=None,
        account_url=stored.url if stored is not None else None,
        diagnoses=(failed(DIRECTORY, found, advice), skipped(ACCOUNT, why), skipped(CLOCK, why)),
    )


# ---------------------------------------------------------------------- what it offers


async def _binding(settings: AccountSettings, directory: Directory, *, has_account: bool) -> list[Diagnosis]:
    """What it takes to make an account, as long as there is none."""
    if has_account:
        return []
    found = []
    if directory.terms_of_service and not settings.agree_to_terms:
        advice = f"read {directory.terms_of_service}, and set acme.agree_to_terms = true"
        found.append(failed(DIRECTORY, "the CA's terms of service are not agreed to", advice))
    if directory.external_account_required and not settings.eab_kid:
        where = f" at {directory.website}" if directory.website else ""
        advice = f"get a key id and its HMAC key{where}, for acme.eab_kid and acme.eab_hmac_file"
        found.append(failed(DIRECTORY, "the CA takes its customers only (external account binding)", advice))
    elif settings.eab_hmac_file is not None:
        wrong = await in_own_thread(partial(_wrong_hmac, settings), DISK_SECONDS)
        if wrong:
            advice = "it has to be a file with the base64url text that the CA gave you, which this user may read"
            found.append(failed(DIRECTORY, wrong, advice))
    return found


def _wrong_hmac(settings: AccountSettings) -> str:
    assert settings.eab_hmac_file is not None
    try:
        content = read(settings.eab_hmac_file, MAX_HMAC_BYTES)
    except OSError as error:
        return f"{settings.eab_hmac_file} cannot be read: {error.strerror}"
    return "" if _is_base64url(content.strip()) else f"{settings.eab_hmac_file} is not base64url text"


def _profiles(directory: Directory, wanted: Sequence[Wanted]) -> Iterator[Diagnosis]:
    for each in wanted:
        if not each.profile or each.profile in directory.profiles:
            continue
        if directory.profiles:
            found = f'the CA has no profile "{each.profile}", which {each.name} is to have'
            yield failed(DIRECTORY, found, f"take one of {', '.join(directory.profiles)}, or none")
        else:
            found = f'the CA has no profiles at all, and {each.name} is to have "{each.profile}"'
            yield warning(DIRECTORY, found, "remove profile from the configuration: it is passed over, or refused")


def _described(settings: AccountSettings, directory: Directory) -> str:
    parts = [
        "terms agreed to" if directory.terms_of_service else "",
        "tells when to renew" if directory.renewal_info is not None else "does not tell when to renew",
        f"profiles {', '.join(directory.profiles)}" if directory.profiles else "",
        f"CAA identity {', '.join(directory.caa_identities)}" if directory.caa_identities else "",
    ]
    return f"{settings.directory}: {'; '.join(filter(None, parts))}"


# ---------------------------------------------------------------------- our account


async def _account(client: Client, stored: StoredAccount | None, unreadable: str) -> tuple[str | None, Diagnosis]:
    """Its URL, None where there is none."""
    if unreadable:
        return None, skipped(ACCOUNT, f"its key cannot be read: {unreadable}")
    if stored is None:
        return None, skipped(ACCOUNT, "none yet: it is made with the first order")
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            found = await client.find_account()
    except Problem as problem:
        advice = "the CA refuses this account, for the reason it gives: nothing can be ordered until it takes it again"
        if problem.code == "unauthorized":
            advice = "the account was deactivated or revoked: take its directory out of acme.state_dir for a new one"
        return stored.url, failed(ACCOUNT, str(problem), advice)
    except (AcmeError, TimeoutError) as error:
        words = str(error) or f"no answer within {ANSWER_SECONDS:g} s"
        return stored.url, failed(ACCOUNT, words, "the directory answered, and this did not: try again later")
    if found is None:
        advice = "nothing to do, unless CAA records name the old account: a new one is made with the next order"
        return None, warning(ACCOUNT, "the CA does not know the key of our account", advice)
    if found.status != AccountStatus.VALID:
        advice = "take its directory out of acme.state_dir, and a new account is made with the next order"
        return found.url, failed(ACCOUNT, f"{found.url} is {found.status}", advice)
    return found.url, good(ACCOUNT, found.url)
