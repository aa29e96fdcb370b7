"""Writes docs/configuration.md out of the configuration's own schema, so that it says what the program takes.

    .venv/bin/python scripts/config_reference.py [--check]

With --check it writes nothing, and exits with 1 where the file would change.
"""  # noqa: INP001  no package: run by its name

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from sniproxy.config import json_schema

FILE = Path(__file__).parent.parent / "docs" / "configuration.md"

HEADERS = {"backends": "[backends.NAME]", "routes": "[[routes]]", "certificates": "[[certificates]]"}
"""Of sections that may be there several times; the others are written [name]."""

TOP = """\
# Configuration

<!-- Written by scripts/config_reference.py out of the schema; changes are made there. -->

One TOML file: the one given with `-c`, else `$SNIPROXY_CONFIG`, else `/etc/sniproxy/sniproxy.toml`. `sniproxy check`
tells every mistake of it at once, each with its line, and whether what it points at is there. A key that is not listed
here is a mistake. So is one that has no effect because of another.

The shortest file that does something has one backend, called as `default_backend` is by default:

```toml
[backends.haproxy]
servers = ["unix:/run/haproxy/sniproxy.sock"]
```

## Kinds of value

- **duration**: a whole number and `ms`, `s`, `m`, `h` or `d`, as in `"5s"` and `"10m"`, never without the unit; `0`
  where the key says what it means.
- **size**: bytes, or a whole number and `KiB`, `MiB` or `GiB`, as in `"16KiB"`.
- **address**: `"192.0.2.1:443"`, `"[2001:db8::1]:443"`, `"host.example:443"`, `"unix:/path"`, `"unix:@abstract"`. To
  listen on, `":443"` is all addresses of both families, and `"[::]:443"` all of IPv6 only.
- **pattern**: `"git.example.com"` is that name, `"*.example.com"` has one label more, `".example.com"` is the name and
  all below it.
- **network**: a CIDR, such as `"192.0.2.0/24"` or `"2001:db8::/32"`, or one address.
- **path**: absolute.

The most specific pattern wins, whatever the order in the file: the exact name, then the suffix that is the whole name,
then one label in front, then the longest suffix. Under one pattern, a route for a protocol that the client offers goes
before one for any.

HUP reloads the file. Connections that are there keep what they have, and a file with a mistake changes nothing. Where
certificates change, those that are being ordered or delivered come to their end first. Changes of `[admin]`, `[http]`,
`[log]`, and of `user`, `group` and `workers` in `[proxy]`, take a restart.
"""

NOT_YET = """\
## Without effect so far

These are read and checked like all others, and do nothing yet: `check`, `check_interval`, `rise` and `fall` of a
backend; `workers`, which says so when it is not 1.
"""


def render() -> str:
    """The whole page."""
    schema = json_schema()
    parts = [TOP]
    for name, entry in schema["properties"].items():
        table, intro = _section(schema, entry)
        parts.append(f"## `{HEADERS.get(name, f'[{name}]')}`\n\n{intro}\n\n{table}")
    parts.append(NOT_YET)
    return "\n".join(parts)


def _section(schema: dict[str, Any], entry: dict[str, Any]) -> tuple[str, str]:
    """The table of a section's keys, and the sentence above it."""
    inner = entry.get("items") or entry.get("additionalProperties") or entry
    section = _resolved(schema, {"$ref": inner["$ref"]})
    # The section's own words begin with its header, which is the heading here.
    intro = section["description"].partition(": ")[2]
    rows = ["| key | takes | default | |", "|---|---|---|---|"]
    for key, described in section["properties"].items():
        takes = _takes(schema, _resolved(schema, described))
        rows.append(f"| `{key}` | {takes} | {_default(section, key, described)} | {_cell(described['description'])} |")
    return "\n".join(rows) + "\n", intro[:1].upper() + intro[1:]


def _resolved(schema: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    reference = entry.get("$ref")
    return {**schema["$defs"][reference.rpartition("/")[2]], **entry} if reference else entry


def _takes(schema: dict[str, Any], entry: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "enum" in entry:
        return " ".join(_code(value) for value in entry["enum"])
    if "const" in entry:
        return _code(entry["const"])
    if "anyOf" in entry:
        return " or ".join(_takes(schema, choice) for choice in entry["anyOf"])
    kind = entry["type"]
    if kind == "array":
        element = _resolved(schema, entry["items"])
        least = ", at least one" if entry.get("minItems") else ""
        return f"list of {_plural(schema, element)}{least}"
    if kind == "integer":
        return f"number{_range(entry)}"
    if kind == "boolean":
        return "`true` `false`"
    return _text(entry)


def _plural(schema: dict[str, Any], element: dict[str, Any]) -> str:
    if "enum" in element:
        return _takes(schema, element)
    words = element.get("description", "a string")
    known = {
        "an address to listen on": "addresses",
        "an address to connect to": "addresses",
        "the path of a unix socket, or an address": "paths of sockets, or addresses",
        "an exact name, *.NAME or .NAME": "patterns",
        "an ALPN protocol name": "protocol names",
        "a CIDR, or a single IP address": "networks",
        "a DNS name or an IP address": "names",
        "a string": "strings",
    }
    return known[words]


def _range(entry: dict[str, Any]) -> str:
    lowest, highest = entry.get("minimum"), entry.get("maximum")
    if highest is not None and highest < 2**31 - 1:
        return f", {lowest} to {highest}"
    return f", {lowest} or more" if lowest else ""


def _text(entry: dict[str, Any]) -> str:
    pattern = entry.get("pattern", "")
    if "(ms|s|m|h|d)" in pattern:
        return "duration, or `0`" if "0|" in pattern else "duration"
    if isinstance(entry["type"], list):
        return "size"
    # Named streams, or a path.
    words = re.findall(r"\w+(?=\|)", pattern)
    if words:
        return " ".join(_code(word) for word in words) + " or a path"
    return "path" if pattern == "^/" else "string"


def _default(section: dict[str, Any], key: str, entry: dict[str, Any]) -> str:
    if key in section.get("required", ()):
        return "needed"
    return _code(entry["default"]) if "default" in entry else "—"


def _code(value: object) -> str:
    """A value as TOML writes it."""
    return f"`{_cell(json.dumps(value, ensure_ascii=False))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Writes the page, or with --check only compares."""
    text = render()
    if "--check" in sys.argv[1:]:
        same = FILE.exists() and FILE.read_text(encoding="utf-8") == text
        if not same:
            sys.stderr.write(f"{FILE.name} is not what the schema says: run scripts/config_reference.py\n")
        return 0 if same else 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
