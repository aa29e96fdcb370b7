"""HAProxy's names for our files: exact, relative, below crt-base, through symlinks, in a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sniproxy.errors import DeliveryError
from sniproxy.haproxy.names import find_certificate, find_directory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """/…/srv/certs with a.pem in it."""
    directory = tmp_path / "srv" / "certs"
    directory.mkdir(parents=True)
    (directory / "a.pem").touch()
    return directory


def test_the_very_path(certs: Path) -> None:
    known = [f"{certs}/a.pem", "certs/a.pem", "/container/certs/a.pem"]

    assert find_certificate(certs / "a.pem", known) == f"{certs}/a.pem"


@pytest.mark.parametrize("name", ["certs/a.pem", "srv/certs/a.pem", "./certs/a.pem", "a.pem"])
def test_relative_to_where_haproxy_was_started(certs: Path, name: str) -> None:
    assert find_certificate(certs / "a.pem", ["certs/b.pem", name]) == name


@pytest.mark.parametrize("name", ["/nowhere/else/certs/a.pem", "/nowhere/else/a.pem"])
def test_where_only_haproxy_can_look(certs: Path, name: str) -> None:
    """A container has the directory elsewhere, as this test's has not."""
    assert find_certificate(certs / "a.pem", [name]) == name


def test_the_longest_common_tail(certs: Path) -> None:
    known = ["a.pem", "certs/a.pem", "other/certs/a.pem", "srv/certs/a.pem"]

    assert find_certificate(certs / "a.pem", known) == "srv/certs/a.pem"


def test_through_a_symlink(certs: Path, tmp_path: Path) -> None:
    """The tail alone would have chosen another."""
    (tmp_path / "link").symlink_to(certs)
    known = [f"{tmp_path}/link/a.pem", "certs/a.pem"]

    assert find_certificate(certs / "a.pem", known) == f"{tmp_path}/link/a.pem"


def test_a_symlink_to_the_file(certs: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pem").symlink_to(certs / "a.pem")

    assert find_certificate(certs / "a.pem", [f"{tmp_path}/a.pem"]) == f"{tmp_path}/a.pem"


def test_our_own_path_is_a_symlink(certs: Path, tmp_path: Path) -> None:
    (tmp_path / "ours").symlink_to(certs)

    assert find_certificate(tmp_path / "ours" / "a.pem", [f"{certs}/a.pem"]) == f"{certs}/a.pem"


def test_before_the_file_is_there(certs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(certs)

    assert find_certificate(certs / "new.pem", [f"{tmp_path}/link/new.pem"]) == f"{tmp_path}/link/new.pem"


def test_a_file_that_is_there_and_another_one(certs: Path, tmp_path: Path) -> None:
    """It has the same name, and even its directory has; it would be overwritten in memory."""
    other = tmp_path / "etc" / "certs"
    other.mkdir(parents=True)
    (other / "a.pem").touch()

    assert find_certificate(certs / "a.pem", [f"{other}/a.pem"]) is None


def test_bundles_of_several_keys_are_not_ours(certs: Path) -> None:
    """HAProxy loads X.pem.rsa and X.pem.ecdsa together as X.pem (configuration manual, section 5.1, crt)."""
    assert find_certificate(certs / "a.pem", [f"{certs}/a.pem.rsa", f"{certs}/a.pem.ecdsa"]) is None


def test_other_names(certs: Path) -> None:
    assert find_certificate(certs / "a.pem", [f"{certs}/b.pem", "aa.pem", ""]) is None
    assert find_certificate(certs / "a.pem", []) is None


def test_which_of_two(certs: Path) -> None:
    """Either may be ours."""
    with pytest.raises(DeliveryError, match=r"one/certs/a\.pem and two/certs/a\.pem: which of them is ") as caught:
        find_certificate(certs / "a.pem", ["two/certs/a.pem", "one/certs/a.pem"])
    assert caught.value.reload_helps


def test_one_file_by_two_names(certs: Path, tmp_path: Path) -> None:
    """HAProxy has it twice, then, and each needs to be set."""
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(certs)
    with pytest.raises(DeliveryError, match="which of them"):
        find_certificate(certs / "a.pem", [f"{tmp_path}/one/a.pem", f"{tmp_path}/two/a.pem"])


def test_directories_likewise(certs: Path, tmp_path: Path) -> None:
    (tmp_path / "tls").symlink_to(certs)

    assert find_directory(certs, [str(certs), "certs"]) == str(certs)
    assert find_directory(certs, ["other", "certs"]) == "certs"
    assert find_directory(certs, [f"{tmp_path}/tls", str(tmp_path)]) == f"{tmp_path}/tls"
    assert find_directory(certs, ["/nowhere/certs"]) == "/nowhere/certs"
    assert find_directory(certs, [str(tmp_path), "/nowhere/crt.list"]) is None
    assert find_directory(certs, ["", "/"]) is None
