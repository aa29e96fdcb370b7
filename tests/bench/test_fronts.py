from __future__ import annotations

from typing import TYPE_CHECKING

from bench.fronts import sniproxy_config
from sniproxy.config import load

if TYPE_CHECKING:
    from pathlib import Path


def test_our_own_configuration_is_a_valid_one(tmp_path: Path) -> None:
    file = tmp_path / "sniproxy.toml"
    file.write_text(sniproxy_config(listen="127.0.0.1:4443", admin="127.0.0.1:8404", server="unix:/run/b.sock"))
    config = load(file)
    assert [str(address) for address in config.backends["loop"].servers] == ["unix:/run/b.sock"]
