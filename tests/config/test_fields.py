"""The kinds of value a section is made of (contract section 2)."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sniproxy.config.fields import absolute_path, optional_path
from sniproxy.config.schema import Admin, Proxy, Route


@pytest.mark.parametrize("value", ["state", "", "~/state", "/a\0b", 5, None])
def test_paths_are_absolute(value):
    """Section 2: paths; a service has no working directory that anybody chose."""
    with pytest.raises(ValueError, match="is not an absolute path"):
        absolute_path(value)


def test_an_empty_path_is_none():
    """Section 2: ca_file = "" """
    assert optional_path("") is None


def test_sections_are_frozen():
    """Design: config is TOML to frozen values."""
    with pytest.raises(ValidationError):
        Proxy().workers = 2  # type: ignore[misc]


def test_sections_are_equal_when_they_say_the_same():
    """A reload changes what has changed: writing a default out is no change."""
    written = Proxy.model_validate({"listen": ["0.0.0.0:443", "[::]:443"]})
    assert written == Proxy()
    assert hash(written) == hash(Proxy())
    assert written != Proxy.model_validate({"workers": 2})


def test_admin_can_be_turned_off():
    """Section 2: [admin]; "" is no listener."""
    assert Admin.model_validate({"listen": "", "control_socket": ""}) == Admin.model_construct(
        listen=None, control_socket=None
    )


@pytest.mark.parametrize("value", ["", "x" * 256, 5])
def test_protocols_have_1_to_255_bytes(value):
    """Section 2: `alpn`; RFC 7301 section 3.1: opaque ProtocolName<1..2^8-1>."""
    with pytest.raises(ValidationError, match="is not a protocol name"):
        Route.model_validate({"alpn": [value]})


def test_protocols_are_bytes_as_on_the_wire():
    """Section 2: `alpn`."""
    assert Route.model_validate({"alpn": ["h2", "http/1.1"]}).alpn == (b"h2", b"http/1.1")
