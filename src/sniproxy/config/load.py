"""From a file, or its text, to a Config, or to everything that is wrong with it.

Three steps, each in a module of its own: `schema` and `certificates` take each key by itself, `checks` and
`certificate_checks` look at what they say together, `positions` finds the lines, and only when something is wrong.
"""

from __future__ import annotations

import re
import tomllib
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema

from sniproxy.config.certificate_checks import CERTIFICATE_CHECKS
from sniproxy.config.certificates import Acme, BackendRef, Certificate
from sniproxy.config.checks import ROUTING_CHECKS, Finding
from sniproxy.config.messages import findings, suggested_path
from sniproxy.config.positions import Positions
from sniproxy.config.schema import Config
from sniproxy.config.wording import key_path
from sniproxy.errors import ConfigError, Mistake

if TYPE_CHECKING:
    import os

    from sniproxy.config.wording import KeyPath

MAX_FILE_BYTES = 64 << 20
"""A file of a hundred thousand routes has about a tenth of this."""

_place = re.compile(r"(?s)(.*?)(?: \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\))?").fullmatch


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        return False  # a key is its own title


class Source:
    """A file's text, and the way from a key back to its line; for checks of what the file points at."""

    def __init__(self, text: str, *, file: str) -> None:
        self.text = text
        self.file = file

    @cached_property
    def positions(self) -> Positions:
        return Positions(self.text)

    def mistake(self, path: KeyPath, message: str) -> Mistake:
        """A mistake at the line of `path`, or of the nearest thing around it that the file has."""
        return Mistake(file=self.file, line=self.positions.line(path), key=key_path(path), message=message)


def load(path: str | os.PathLike[str]) -> Config:
    """Reads a file. Raises ConfigError with every mistake; one without a line where it cannot be read at all."""
    source = read(path)
    return parse(source.text, file=source.file)


def read(path: str | os.PathLike[str]) -> Source:
    """The text of a file, not yet looked into. Raises ConfigError where it cannot be had."""
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(file, f"cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise _unreadable(file, f"is larger than {MAX_FILE_BYTES >> 20}MiB")
    try:
        return Source(raw.decode("utf-8-sig"), file=file)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        reason = f"is not UTF-8: byte 0x{raw[error.start]:02x} in line {line}"
        raise _unreadable(file, reason) from None


def parse(text: str, *, file: str) -> Config:
    """Reads TOML text; `file` is what mistakes call it. Raises ConfigError with every mistake, in order of lines."""
    source = Source(text, file=file)
    document = _toml(source)
    found: list[Finding] = []
    config: Config | None
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        found = [Finding(path, message) for path, message in findings(error)]
        config = _remainder(document, found)
    if config is not None:
        wrong = _wrong_by_themselves(found)
        checks = (*ROUTING_CHECKS, *CERTIFICATE_CHECKS)
        found += [finding for check in checks for finding in check(config) if not _touches(finding, wrong)]
    if found or config is None:
        raise ConfigError([_mistake(source, finding) for finding in sorted(found, key=partial(_order, source))])
    return _completed(config)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file, with descriptions and defaults: for editors and the reference."""
    schema = Config.model_json_schema(schema_generator=_WithoutTitles)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "sniproxy.toml"}


def _unreadable(file: str, message: str) -> ConfigError:
    return ConfigError([Mistake(file=file, line=0, key="", message=message)])


def _toml(source: Source) -> dict[str, Any]:
    try:
        return tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        match = _place(str(error))
        what, line, column = match.groups() if match else (str(error), None, None)
        at = f" (column {column})" if column else ""
        number = int(line) if line else source.text.rstrip().count("\n") + 1
        message = f"not TOML: {what[:1].lower()}{what[1:]}{at}"
        raise ConfigError([Mistake(file=source.file, line=number, key="", message=message)]) from None
    except RecursionError:
        raise _unreadable(source.file, "not TOML that can be read: lists or tables are nested too deeply") from None
    except ValueError:  # Python refuses to read integers of thousands of digits
        raise _unreadable(source.file, "not TOML that can be read: a number has too many digits") from None


def _wrong_by_themselves(found: list[Finding]) -> set[KeyPath]:
    """The keys that have a mistake of their own, and those that an unknown key was probably meant to be."""
    wrong: set[KeyPath] = set()
    for finding in found:
        wrong.add(_table_key(finding.path))
        suggested = suggested_path(finding.path)
        if suggested:
            wrong.add(suggested)
    return wrong


def _table_key(path: KeyPath) -> KeyPath:
    """The path up to its last table key: an element of a list has no default that could stand in its place."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    return path


def _remainder(document: dict[str, Any], found: list[Finding]) -> Config | None:
    """What is left when the keys with mistakes are taken out; the document is used up by that."""
    wrong = {_table_key(finding.path) for finding in found}
    for path in wrong:
        if any(path[:depth] in wrong for depth in range(1, len(path))):
            continue  # inside of something that is taken out itself
        table: Any = document
        for part in path[:-1]:
            table = table[part]
        del table[path[-1]]
    try:
        return Config.model_validate(document)
    except ValidationError:
        return None


def _touches(finding: Finding, wrong: set[KeyPath]) -> bool:
    paths = (finding.path, *finding.drawn_from)
    return bool(wrong) and any(path[:depth] in wrong for path in paths for depth in range(1, len(path) + 1))


def _order(source: Source, finding: Finding) -> tuple[int, tuple[str, ...]]:
    # On one line by key; numbers as numbers, so that [10] comes after [9].
    return source.positions.line(finding.path), tuple(
        f"{part:09}" if isinstance(part, int) else part for part in finding.path
    )


def _mistake(source: Source, finding: Finding) -> Mistake:
    see = ""
    if finding.see is not None and finding.see in source.positions:
        see = f" (line {source.positions.line(finding.see)})"
    return source.mistake(finding.path, finding.message + see)


def _completed(config: Config) -> Config:
    """Sets what is by default as elsewhere in the file."""
    changes: dict[str, object] = {}
    if config.haproxy is not None and "verify" not in config.haproxy.model_fields_set:
        verify = BackendRef(config.proxy.default_backend)
        changes["haproxy"] = config.haproxy.model_copy(update={"verify": verify})
    if config.acme is not None and config.certificates:
        changes["certificates"] = tuple(_inheriting(certificate, config.acme) for certificate in config.certificates)
    return config.model_copy(update=changes) if changes else config


def _inheriting(certificate: Certificate, acme: Acme) -> Certificate:
    inherited = {"key_type": acme.key_type, "challenges": acme.challenges, "profile": acme.profile}
    defaults = {"name": certificate.names[0], **inherited}
    return certificate.model_copy(
        update={key: value for key, value in defaults.items() if key not in certificate.model_fields_set}
    )
