"""The configuration: TOML in, frozen values out, or every mistake at once with its line.

Read `load` first: it is the way of a file through the others. `schema` and `certificates` are the sections with all
their keys and defaults, `checks` and `certificate_checks` what the keys say together. `units`, `names` and `addresses`
read the kinds of value, `positions` finds the lines, `messages` and `wording` have the words.
"""

from __future__ import annotations

from sniproxy.config.load import Source, json_schema, load, parse, read
from sniproxy.config.schema import Config

__all__ = ["Config", "Source", "json_schema", "load", "parse", "read"]
