"""Durations, sizes and networks (contract section 2: durations "5s", "10m"; sizes "16KiB"; client CIDRs)."""

from __future__ import annotations

import ipaddress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.units import duration, network, size

hello = partial(size, smallest="1KiB", largest="128KiB")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5.0), ("10m", 600.0), ("200ms", 0.2), ("1h", 3600.0), ("2d", 172800.0), ("10 s", 10.0), ("365d", 31536e3)],
)
def test_durations_become_seconds(text, seconds):
    """Section 2: durations "5s", "10m"."""
    assert duration(text) == seconds


@given(st.integers(10, 10**9))
def test_milliseconds_are_exact(number):
    """Section 2: 300ms is the very float 0.3, as if it had been written in seconds."""
    assert duration(f"{number}ms") == float(f"{number}e-3")


@pytest.mark.parametrize("value", ["5", 5, "5000"], ids=repr)
def test_a_bare_number_is_no_duration(value):
    """Section 2: durations carry a unit; the message names those there are."""
    with pytest.raises(ValueError, match=r"has no unit; .* ms, s, m, h or d"):
        duration(value)


@pytest.mark.parametrize(
    "value", ["", "s", "-5s", "1.5s", "5 minutes", "5S", "1h30m", "\u0665s", True, 1.5, None, [], {}]
)
def test_anything_else_is_no_duration(value):
    """Section 2: a whole number and a unit, nothing else."""
    with pytest.raises(ValueError, match="is not a duration"):
        duration(value)


@pytest.mark.parametrize("value", ["0s", "9ms", "366d", "999999999999999d"])
def test_durations_have_a_least_and_a_most(value):
    """Section 2: a timeout of nothing, or of more than a year, is a slip."""
    with pytest.raises(ValueError, match="it may be 10ms to 365d"):
        duration(value)


@pytest.mark.parametrize("value", [0, "0", "0s", "0ms"], ids=repr)
def test_zero_is_off_where_that_means_something(value):
    """Section 2: 0 is off."""
    assert duration(value, zero_is_off=True) == 0.0


@pytest.mark.parametrize("value", [0, "0"], ids=repr)
def test_zero_is_refused_elsewhere(value):
    """Section 2: no timeout can be turned off."""
    with pytest.raises(ValueError, match="has no unit"):
        duration(value)


@pytest.mark.parametrize(("value", "count"), [("16KiB", 16384), ("4096", 4096), (5000, 5000), ("2048B", 2048)])
def test_sizes_become_bytes(value, count):
    """Section 2: sizes "16KiB"."""
    assert hello(value) == count


def test_large_units_are_read():
    """Section 2: sizes; MiB and GiB as KiB."""
    assert size("1GiB", smallest="1MiB", largest="2GiB") == 1 << 30


@pytest.mark.parametrize("value", ["16KB", "16k", "1.5KiB", "-1", "", True, 1.5, None, []])
def test_anything_else_is_no_size(value):
    """Section 2: KB means two things, so it is not taken."""
    with pytest.raises(ValueError, match=r"is not a size; .*KiB"):
        hello(value)


@pytest.mark.parametrize("value", ["1023", "129KiB", 0])
def test_sizes_have_bounds(value):
    """Section 2: max_hello is 1KiB to 128KiB."""
    with pytest.raises(ValueError, match="it may be 1KiB to 128KiB"):
        hello(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_networks_are_cidrs_or_single_addresses(text, expected):
    """Section 2: client CIDRs."""
    assert network(text) == ipaddress.ip_network(expected)


def test_bits_after_the_prefix_name_the_network_meant():
    """Section 2: client CIDRs; 10.0.0.1/8 may mean either, so it is asked."""
    with pytest.raises(ValueError, match=r'has bits set after the prefix; the network is "10\.0\.0\.0/8"'):
        network("10.0.0.1/8")


@pytest.mark.parametrize("value", ["", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10/8", "example.com", 10, None, "::/129"])
def test_anything_else_is_no_network(value):
    """Section 2: client CIDRs."""
    with pytest.raises(ValueError, match="is not a network; write"):
        network(value)
