"""What pydantic finds wrong, in our own words.

A message says what is wrong and what is allowed, and never shows how the file is checked. Mistakes that our own
functions found carry their text already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sniproxy.config.certificates import Acme, Certificate, Haproxy, Hooks
from sniproxy.config.schema import Admin, Backend, Config, Http, Log, Proxy, Route
from sniproxy.config.wording import listed, nearest, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from sniproxy.config.wording import KeyPath

_EXPECTED: Final = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be a string",
    "tuple_type": "must be a list",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}
_SECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "proxy": Proxy,
    "backends": Backend,
    "routes": Route,
    "http": Http,
    "admin": Admin,
    "acme": Acme,
    "certificates": Certificate,
    "haproxy": Haproxy,
    "hooks": Hooks,
    "log": Log,
}
_HEADERS: Final = {"backends": "[backends.NAME]", "routes": "[[routes]]", "certificates": "[[certificates]]"}
_EMPTY: Final = frozenset(("too_short", "string_too_short"))


def findings(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    """Path and message of each mistake."""
    for detail in error.errors(include_url=False):
        # A list of which every element was refused counts as empty on top of that.
        if detail["type"] not in _EMPTY or not detail["input"]:
            yield detail["loc"], _message(detail)


def suggested_path(path: KeyPath) -> KeyPath | None:
    """For the path of an unknown key, the one that was probably meant."""
    section = _section_at(path[:-1])
    near = nearest(str(path[-1]), section.model_fields) if section else None
    return (*path[:-1], near) if near else None


def _message(detail: ErrorDetails) -> str:
    kind, value, path = detail["type"], detail["input"], detail["loc"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind in _EMPTY:
        return "must not be empty"
    if kind in ("model_type", "mapping_type", "dict_type"):
        return _not_a_table(path, value)
    if kind == "tuple_type":
        return _not_a_list(path, value)
    expected = _EXPECTED.get(kind, "has a value that is not allowed").format(**context).replace("'", '"')
    return f"{expected}, not {shown(value)}"


def _not_a_list(path: KeyPath, value: object) -> str:
    if isinstance(value, dict):
        return f"is a list of tables; write [[{path[-1]}]], in double brackets, above each"
    hint = f"; write [{shown(value)}]" if isinstance(value, str) else ""
    return f"must be a list, not {shown(value)}{hint}"


def _not_a_table(path: KeyPath, value: object) -> str:
    if isinstance(value, list) and isinstance(path[-1], str):
        return f"is there once only; write [{path[-1]}], in single brackets"
    return f"must be a table, not {shown(value)}"


def _unknown_key(path: KeyPath) -> str:
    section = _section_at(path[:-1])
    if section is None:
        return "unknown key"
    key = str(path[-1])
    near = nearest(key, section.model_fields)
    if near:
        return f'unknown key; did you mean "{near}"?'
    elsewhere = _sections_with(key)
    if elsewhere:
        return f"unknown key here; it belongs in {listed(elsewhere)}"
    return f"unknown key; allowed here: {', '.join(section.model_fields)}"


def _section_at(path: KeyPath) -> type[BaseModel] | None:
    """The section whose keys stand below `path`: at the root, or below one of its keys, whatever the name or number."""
    if not path:
        return Config
    return _SECTIONS.get(str(path[0]))


def _sections_with(key: str) -> list[str]:
    return [_HEADERS.get(name, f"[{name}]") for name, section in _SECTIONS.items() if key in section.model_fields]
