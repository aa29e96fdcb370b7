"""What no single key tells of [acme], [[certificates]], [haproxy] and [hooks]; see `checks` for how these work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sniproxy.config.certificates import LONGEST_FILE_NAME, BackendRef
from sniproxy.config.checks import Finding, unknown_backend
from sniproxy.config.wording import key_path, shown
from sniproxy.policy.routing import REJECT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sniproxy.config.schema import Config
    from sniproxy.config.wording import KeyPath


def account(config: Config) -> Iterator[Finding]:
    """Certificates have a CA, its terms are agreed to, and an external account binding is whole."""
    acme = config.acme
    if acme is None:
        if config.certificates:
            message = 'needs an [acme] section: write [acme] with directory = "letsencrypt" and agree_to_terms = true'
            yield Finding(("certificates",), message, (("acme",),))
        return
    if config.certificates and not acme.agree_to_terms:
        message = "must be true to order certificates: read the CA's terms of service first"
        yield Finding(("acme", "agree_to_terms"), message, (("certificates",),))
    if bool(acme.eab_kid) != bool(acme.eab_hmac_file):
        given, absent = ("eab_kid", "eab_hmac_file") if acme.eab_kid else ("eab_hmac_file", "eab_kid")
        yield Finding(("acme", given), f"has no effect without {absent}; write both or none", (("acme", absent),))


def challenges(config: Config) -> Iterator[Finding]:
    """No list of challenges names one twice, or none that could be answered."""
    lists: list[tuple[KeyPath, Sequence[str]]] = []
    if config.acme is not None:
        lists.append((("acme", "challenges"), config.acme.challenges))
    for number, certificate in enumerate(config.certificates):
        if "challenges" in certificate.model_fields_set:
            lists.append((("certificates", number, "challenges"), certificate.challenges))
    for path, wanted in lists:
        for index, challenge in enumerate(wanted):
            if challenge in wanted[:index]:
                yield Finding((*path, index), f"{shown(challenge)} is there twice")
        if set(wanted) == {"http-01"} and config.http is None:
            message = 'http-01 is answered by [http], which is not there: write [http], or add "tls-alpn-01"'
            yield Finding(path, message, (("http",),))


def certificate_names(config: Config) -> Iterator[Finding]:
    """No certificate has a name twice, and no two certificates are kept in one file."""
    taken: dict[str, KeyPath] = {}
    for number, certificate in enumerate(config.certificates):
        path: KeyPath = ("certificates", number)
        seen: set[str] = set()
        for index, name in enumerate(certificate.names):
            if name in seen:
                yield Finding((*path, "names", index), f"{shown(name)} is there twice")
            seen.add(name)
        # Neither written nor to be had from the names: those are the mistake then.
        file_name = certificate.name or (certificate.names[0] if certificate.names else "")
        written = "name" in certificate.model_fields_set
        place = (*path, "name") if written else (*path, "names")
        if len(file_name) > LONGEST_FILE_NAME:
            yield Finding(
                (*path, "name"), f"is needed: the first of names is too long to name a file, {len(file_name)}"
            )
        if file_name and (first := taken.setdefault(file_name, place)) is not place:
            hint = "" if written else "; give one of them a name of its own, name = …"
            message = f"a certificate is called {shown(file_name)} already, {key_path(first[:2])}{hint}"
            yield Finding(place, message, (first, (*path, "name"), (*first[:2], "name")), see=first)


def delivery(config: Config) -> Iterator[Finding]:
    """Delivery is verified where there is something, and HAProxy does not read what is ours."""
    haproxy = config.haproxy
    if haproxy is None:
        return
    path: KeyPath = ("haproxy", "verify")
    if "verify" in haproxy.model_fields_set:
        verify = haproxy.verify
        if isinstance(verify, BackendRef) and verify.name not in config.backends:
            message = unknown_backend(verify.name, config.backends, ("off",))
            yield Finding(path, message, (("backends",), ("backends", verify.name)))
    elif config.proxy.default_backend == REJECT:
        message = 'is missing: with default_backend = "reject", say where HAProxy is: "backend:NAME", or "off"'
        yield Finding(path, message, (("proxy", "default_backend"),))
    if config.acme is not None and haproxy.certificate_dir == config.acme.state_dir:
        # `crt DIR` reads every file in it, account keys included.
        message = "is acme.state_dir: HAProxy would try to load everything in there"
        yield Finding(("haproxy", "certificate_dir"), message, (("acme", "state_dir"),))


def hooks(config: Config) -> Iterator[Finding]:
    """Hooks have something to be run for."""
    for key in ("on_renewed", "on_failed"):
        if getattr(config.hooks, key) and not config.certificates:
            yield Finding(("hooks", key), "has no effect without [[certificates]]", (("certificates",),))
    if "timeout" in config.hooks.model_fields_set and not (config.hooks.on_renewed or config.hooks.on_failed):
        message = "has no effect without on_renewed or on_failed"
        yield Finding(("hooks", "timeout"), message, (("hooks", "on_renewed"), ("hooks", "on_failed")))


CERTIFICATE_CHECKS: Final = (account, challenges, certificate_names, delivery, hooks)
