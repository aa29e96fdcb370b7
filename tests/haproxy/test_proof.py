"""The proof: the very certificate, for each of its names, at each place; or what is there instead, and why."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sniproxy.haproxy import proof
from sniproxy.haproxy.proof import VERIFIED_NAMES, Unproven, VerifyTarget, in_words, server_names, unproven
from sniproxy.haproxy.runtime import RuntimeApi
from sniproxy.model import UnixAddress
from tests.support.bundles import ISSUER, bundle, write
from tests.support.haproxy import HAPROXY, MISSING
from tests.support.haproxy_tls import TlsSite

if TYPE_CHECKING:
    from pathlib import Path

    from sniproxy.bundle import Bundle
    from tests.support.processes import Programs

pytestmark = pytest.mark.skipif(HAPROXY is None, reason=MISSING)

BACK = VerifyTarget(address=UnixAddress("/nowhere/tls.sock"))


@pytest.fixture
def site(programs: Programs) -> TlsSite:
    return TlsSite(programs)


def at(site: TlsSite) -> tuple[VerifyTarget, ...]:
    return (VerifyTarget(address=site.bare),)


# ---------------------------------------------------------------------------------------------------- what is asked for


def test_the_names_of_a_bundle() -> None:
    assert server_names(bundle("a.test", "b.test")) == ["a.test", "b.test"]


def test_ip_addresses_are_not_asked_for() -> None:
    """RFC 6066 section 3: a client that wants one sends no name."""
    assert server_names(bundle("a.test", "192.0.2.1", "2001:db8::1")) == ["a.test"]
    assert server_names(bundle("192.0.2.1", "2001:db8::1")) == [None]


def test_a_name_under_a_wildcard() -> None:
    assert server_names(bundle("*.a.test")) == ["any.a.test"]


def test_no_more_names_than_public_cas_put_into_one() -> None:
    names = [f"n{number}.test" for number in range(VERIFIED_NAMES + 1)]

    assert server_names(bundle(*names)) == names[:-1]


# ---------------------------------------------------------------------------------------------------- proven


async def test_at_every_way_in(runner: asyncio.Runner, site: TlsSite) -> None:
    targets = [VerifyTarget(address=address, proxy_protocol=header) for address, header in site.doors]

    assert await unproven(targets, site.first, 0.0) == []


async def test_a_bundle_of_a_hundred_names(runner: asyncio.Runner, site: TlsSite) -> None:
    names = [f"n{number}.first.test" for number in range(100)]
    many = bundle("first.test", *names)
    await RuntimeApi(site.runtime).set_certificate(str(site.path("0first")), many)

    assert await unproven(at(site), many, 0.0) == []


async def test_without_targets_there_is_nothing_to_prove(runner: asyncio.Runner) -> None:
    assert await unproven((), bundle("a.test"), 0.0) == []


async def test_an_rsa_bundle_beside_an_ecdsa_one_of_the_same_name(runner: asyncio.Runner, site: TlsSite) -> None:
    """HAProxy gives the ECDSA one to all that can read it; both are served."""
    api = RuntimeApi(site.runtime)
    for name, content in (("rsa", rsa := bundle("both.test", rsa=True)), ("ecdsa", ecdsa := bundle("both.test"))):
        await api.add_certificate(str(site.certificates), str(site.path(name)), content)

    assert await unproven(at(site), ecdsa, 0.0) == []
    assert await unproven(at(site), rsa, 0.0) == []
    (found,) = await unproven(at(site), bundle("both.test", rsa=True), 0.0)
    assert found.leaf is not None
    assert found.leaf.der == ecdsa.leaf.der


async def test_ip_addresses_alone_are_proven_without_a_name(runner: asyncio.Runner, site: TlsSite) -> None:
    addresses = bundle("192.0.2.1", "2001:db8::1")
    await RuntimeApi(site.runtime).set_certificate(str(site.path("0first")), addresses)

    assert await unproven(at(site), addresses, 0.0) == []


async def test_it_may_take_a_moment(runner: asyncio.Runner, site: TlsSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a reload: another process is not there yet."""
    new = bundle("first.test")
    tried = asyncio.Event()
    honest = proof._handshake

    async def watched(target: VerifyTarget, *rest: object) -> Unproven | None:
        found = await honest(target, *rest)
        tried.set()
        return found

    monkeypatch.setattr(proof, "_handshake", watched)
    task = asyncio.get_running_loop().create_task(unproven(at(site), new, 30.0))
    await tried.wait()
    await RuntimeApi(site.runtime).set_certificate(str(site.path("0first")), new)

    assert await task == []


# ---------------------------------------------------------------------------------------------------- unproven


async def test_another_certificate(runner: asyncio.Runner, site: TlsSite) -> None:
    """The same name, key and issuer are not enough."""
    other = bundle("first.test")
    (found,) = await unproven(at(site), other, 0.0)

    assert (found.address, found.server_name) == (site.bare, "first.test")
    assert found.leaf is not None
    assert found.leaf.der == site.first.leaf.der
    words = in_words(site.path("0first"), other, [found])
    assert words.startswith(f"{site.bare}: for first.test it serves the certificate of {ISSUER} with serial ")
    assert f"serial {site.first.leaf.serial}, until " in words
    assert f"instead of serial {other.leaf.serial}: " in words


async def test_when_one_fails_the_rest_is_not_begun(runner: asyncio.Runner, tmp_path: Path) -> None:
    many = bundle(*(f"n{number}.test" for number in range(100)))
    found = await unproven([BACK], many, 0.0)

    assert 1 <= len(found) <= proof.HANDSHAKES_AT_ONCE
    words = in_words(tmp_path / "a.pem", many, found)
    assert words.startswith(f"{BACK.address}: there is no such socket")
    assert "asked for n" in words


async def test_a_failure_without_a_name(runner: asyncio.Runner) -> None:
    (found,) = await unproven([BACK], bundle("192.0.2.1"), 0.0)

    assert "asked for" not in found.words


# ---------------------------------------------------------------------------------------------------- why


def told(path: Path, name: str | None, served: Bundle) -> str:
    return in_words(path, bundle("a.test"), [Unproven(address=BACK.address, server_name=name, leaf=served.leaf)])


def test_another_file_has_the_same_name(tmp_path: Path) -> None:
    old = write(tmp_path / "old.pem", bundle("a.test"))

    assert f"that is {tmp_path}/old.pem, which has the same name" in told(tmp_path / "a.pem", "a.test", old)


def test_somebody_has_replaced_the_file(tmp_path: Path) -> None:
    theirs = write(tmp_path / "a.pem", bundle("a.test"))

    assert f"what {tmp_path}/a.pem holds now" in told(tmp_path / "a.pem", "a.test", theirs)


def test_a_certificate_from_elsewhere_with_the_name(tmp_path: Path) -> None:
    assert "an old process of HAProxy" in told(tmp_path / "a.pem", "a.test", bundle("a.test"))


def test_a_certificate_without_the_name(tmp_path: Path) -> None:
    first = write(tmp_path / "0.pem", bundle("first.test"))

    assert f"does the bind line there read {tmp_path}?" in told(tmp_path / "a.pem", "a.test", first)


def test_a_client_that_asks_for_no_name(tmp_path: Path) -> None:
    answer = told(tmp_path / "a.pem", None, bundle("first.test"))

    assert "for clients without a name it serves" in answer
    assert "the first certificate of a bind line" in answer


def test_the_other_names_are_told_too(tmp_path: Path) -> None:
    served = bundle("a.test").leaf
    failures = [Unproven(address=BACK.address, server_name=f"{n}.test", leaf=served) for n in "abcde"]

    assert "for a.test (and b.test, c.test) it serves" in in_words(tmp_path / "a.pem", bundle("a.test"), failures)
