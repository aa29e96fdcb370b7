"""What no single key can tell: names that lead nowhere, keys that contradict, addresses that collide.

Each check takes the whole Config and yields what it finds. It may be given a Config in which keys that were wrong by
themselves stand at their defaults; a Finding therefore names every place it is drawn from, and one that touches such
a key is left out. Checks of certificates and their delivery are in `certificate_checks`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sniproxy.config.listeners import collide, leads_back, own_addresses
from sniproxy.config.wording import key_path, listed, nearest, shown
from sniproxy.policy.routing import ACME_INVALID, REJECT, IPNetwork

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sniproxy.config.fields import Section
    from sniproxy.config.schema import Config, Route
    from sniproxy.config.wording import KeyPath
    from sniproxy.model import Address

DEFAULT = "default"
"""The word of `no_sni` for "as default_backend"."""

_EXAMPLE_SERVER: Final = 'servers = ["unix:/run/haproxy/sniproxy.sock"]'
_NO_DEFAULT: Final = (
    f'is "haproxy" when not written, and there is no such backend; write [backends.haproxy] with {_EXAMPLE_SERVER}, '
    'or default_backend = the name of another, or "reject"'
)

_is_backend_name = re.compile(r"[A-Za-z0-9_.-]+").fullmatch


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake: where, and in which words.

    `drawn_from` are the other places it depends on. `see` is one whose line is told as well.
    """

    path: KeyPath
    message: str
    drawn_from: tuple[KeyPath, ...] = ()
    see: KeyPath | None = None


def tables(config: Config) -> Iterator[tuple[KeyPath, Section]]:
    """Every table there is, with its path."""
    for key in type(config).model_fields:
        value = getattr(config, key)
        if key == "backends":
            yield from (((key, name), backend) for name, backend in value.items())
        elif key in ("routes", "certificates"):
            yield from (((key, index), element) for index, element in enumerate(value))
        elif value is not None:
            yield (key,), value


def needed_keys(config: Config) -> Iterator[Finding]:
    """Keys that have no default are there."""
    for path, table in tables(config):
        for key in table.needed:
            if key not in table.model_fields_set:
                example = f"; write, say, {_EXAMPLE_SERVER}" if key == "servers" else ""
                yield Finding((*path, key), f"is missing{example}")


def backend_names(config: Config) -> Iterator[Finding]:
    """Backends have names that fit into metrics and log fields, and none of the words that mean something else."""
    for name in config.backends:
        path = ("backends", name)
        if name in (REJECT, DEFAULT):
            yield Finding(path, f'no backend can be called "{name}": routing gives the word a meaning of its own')
        elif not _is_backend_name(name):
            yield Finding(path, f"{shown(name)} cannot name a backend; use letters, digits, dots, hyphens, underscores")


def backend_references(config: Config) -> Iterator[Finding]:
    """Whatever names a backend names one that there is."""
    proxy = config.proxy
    wanted: list[tuple[KeyPath, str, tuple[str, ...]]] = [
        (("proxy", "default_backend"), proxy.default_backend, (REJECT,)),
        (("proxy", "no_sni"), proxy.no_sni, (REJECT, DEFAULT)),
        (("proxy", "not_tls"), proxy.not_tls, (REJECT,)),
        *((("routes", index, "backend"), route.backend, ()) for index, route in enumerate(config.routes)),
    ]
    by_default = "default_backend" not in proxy.model_fields_set
    for path, name, words in wanted:
        # An absent key of a route is "": it is missing, not unknown.
        if name and name not in words and name not in config.backends:
            absent_default = by_default and path == ("proxy", "default_backend")
            message = _NO_DEFAULT if absent_default else unknown_backend(name, config.backends, words)
            yield Finding(path, message, (("backends",), ("backends", name)))


def unknown_backend(name: str, backends: Collection[str], words: Sequence[str] = ()) -> str:
    """The message for a name that is no backend's; `words` are allowed in its place."""
    instead = f", or write {listed(map(shown, words))}" if words else ""
    if name == REJECT:
        return '"reject" is no backend; to refuse clients, write deny = ["0.0.0.0/0", "::/0"] in the route'
    if name == DEFAULT:
        return f'"default" means nothing here; name a backend{instead}'
    near = nearest(name, backends)
    if near:
        return f"there is no backend {shown(name)}; did you mean {shown(near)}?"
    if backends and len(backends) <= 12:  # more would bury the message
        return f"there is no backend {shown(name)}; name {listed(map(shown, backends))}{instead}"
    return f"there is no backend {shown(name)}; write {key_header(name)} with {_EXAMPLE_SERVER}{instead}"


def key_header(name: str) -> str:
    """The header of a backend's table."""
    return f"[{key_path(('backends', name))}]"


def patterns(config: Config) -> Iterator[Finding]:
    """Each pattern leads to one route: their order decides nothing, so two of the same would be a coin's toss."""
    taken: dict[tuple[str, bytes | None], KeyPath] = {}
    for number, route in enumerate(config.routes):
        for index, pattern in enumerate(route.sni):
            path = ("routes", number, "sni", index)
            drawn_from: tuple[KeyPath, ...] = (("routes", number, "alpn"),)
            if pattern.endswith(ACME_INVALID):
                # The router sees to these before it looks at any route.
                yield Finding(path, f"names below {ACME_INVALID[1:]} are ACME challenges and never reach a route")
            for protocol in route.alpn or (None,):
                first = taken.setdefault((pattern, protocol), path)
                if first is not path:
                    message = _taken(pattern, protocol, path, first)
                    yield Finding(path, message, (*drawn_from, first, (*first[:2], "alpn")), see=first)
                    break


def _taken(pattern: str, protocol: bytes | None, path: KeyPath, first: KeyPath) -> str:
    if path[:2] == first[:2]:
        return f"{shown(pattern)} is there twice"
    condition = f" for clients that offer {shown(protocol.decode())}" if protocol is not None else ""
    return f"{shown(pattern)}{condition} is in {key_path(first[:2])} already; only one route can have it"


def client_networks(config: Config) -> Iterator[Finding]:
    """No network is allowed that is denied as well: deny goes first, so it would never be let in."""
    for number, route in enumerate(config.routes):
        if route.allow and route.deny:
            yield from _denied_anyway(number, route)


def _denied_anyway(number: int, route: Route) -> Iterator[Finding]:
    denied = {network: index for index, network in reversed(list(enumerate(route.deny)))}
    lengths = {(network.version, network.prefixlen) for network in denied}
    for index, network in enumerate(route.allow):
        around = (_supernet(network, length) for version, length in lengths if version == network.version)
        found = [denied[wider] for wider in around if wider in denied]
        if found:
            see: KeyPath = ("routes", number, "deny", min(found))
            message = f'"{network}" has no effect: {key_path(see)} denies it, and deny goes before allow'
            yield Finding(("routes", number, "allow", index), message, (see[:3],), see=see)


def _supernet(network: IPNetwork, length: int) -> IPNetwork | None:
    return network.supernet(new_prefix=length) if length <= network.prefixlen else None


def listeners(config: Config) -> Iterator[Finding]:
    """No two addresses to listen on are the same, or one a part of the other."""
    seen: list[tuple[KeyPath, Address]] = []
    for path, address in own_addresses(config):
        for earlier, other in seen:
            if collide(address, other):
                what = "is listened on already" if address == other else f'cannot be bound beside "{other}"'
                yield Finding(path, f'"{address}" {what}: {key_path(earlier)}', (earlier,), see=earlier)
                break
        seen.append((path, address))


def loops(config: Config) -> Iterator[Finding]:
    """No server is ourselves: each connection would come back as a new one until there are no more."""
    own = list(own_addresses(config))
    for name, backend in config.backends.items():
        for index, server in enumerate(backend.servers):
            for listener, address in own:
                if leads_back(server, address):
                    message = f'"{server}" is our own {key_path(listener)}: connections would come back to this program'
                    yield Finding(("backends", name, "servers", index), message, (listener,), see=listener)
                    break


def health_checks(config: Config) -> Iterator[Finding]:
    """Nothing is said about checks that are off."""
    for name, backend in config.backends.items():
        for key in ("check_interval", "rise", "fall"):
            if backend.check == "off" and key in backend.model_fields_set:
                path = ("backends", name)
                message = 'has no effect while check is "off"; write check = "tcp" or "tls", or take it out'
                yield Finding((*path, key), message, ((*path, "check"),))


def limits(config: Config) -> Iterator[Finding]:
    """One client's limit is not above the limit of all: it would never be reached."""
    proxy = config.proxy
    if proxy.max_connections_per_client > proxy.max_connections:
        message = f"{proxy.max_connections_per_client} is never reached: max_connections is {proxy.max_connections}"
        yield Finding(("proxy", "max_connections_per_client"), message, (("proxy", "max_connections"),))


ROUTING_CHECKS: Final = (
    needed_keys,
    backend_names,
    backend_references,
    patterns,
    client_networks,
    listeners,
    loops,
    health_checks,
    limits,
)
