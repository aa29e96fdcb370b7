"""The kinds of value a section is made of: what each accepts in the file, and what it becomes.

Every kind is a plain Python type with the function that reads it and the JSON Schema of what the file may hold.
No kind is a union of two others: an error's path then is the key's path, with nothing in between.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, PlainValidator, Strict, WithJsonSchema

from sniproxy.config import addresses, names, units
from sniproxy.config.wording import shown
from sniproxy.model import Address, UnixAddress
from sniproxy.policy.routing import IPNetwork


def _needed_in_schema(schema: dict[str, Any], model: type[Any]) -> None:
    if model.needed:
        schema["required"] = list(model.needed)


class Section(
    BaseModel, frozen=True, extra="forbid", strict=True, validate_default=True, json_schema_extra=_needed_in_schema
):
    """A table of the file. Defaults are written as in the file and read like what an operator writes.

    `needed` are the keys without a default. They are not left to pydantic: a table that lacks one then still becomes
    a value, so that everything else in it is checked too, and the mistakes are reported together.
    """

    needed: ClassVar[tuple[str, ...]] = ()

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; not, as in pydantic, whether it is written or a default."""
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))


def key(*, default: object, description: str, **limits: Any) -> Any:
    """A key with its default, as the file would write it."""
    return Field(default=default, description=description, **limits)


def key_without_default(*, until_set: object, description: str, **limits: Any) -> Any:
    """A key that is needed, or whose default depends on others; `until_set` stands in its place while loading."""
    return Field(
        default=until_set, validate_default=False, description=description, json_schema_extra=_no_default, **limits
    )


def optional_section(*, description: str) -> Any:
    """A table that may be absent, and is None then."""
    return Field(default=None, description=description, json_schema_extra=_never_null)


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _never_null(schema: dict[str, Any]) -> None:
    # TOML has no null to write.
    schema.update(schema.pop("anyOf")[0])
    schema.pop("default", None)


def absolute_path(value: object) -> Path:
    """An absolute path; relative ones are refused, as a service's working directory is nobody's choice."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError(f"{shown(value)} is not an absolute path, which begins with /")
    return Path(value)


def optional_path(value: object) -> Path | None:
    """An absolute path, or "" for none."""
    return None if value == "" else absolute_path(value)


def _optional_listen_address(value: object) -> Address | None:
    return None if value == "" else addresses.listen_address(value)


def _optional_socket_path(value: object) -> UnixAddress | None:
    return None if value == "" else addresses.socket_path(value)


def _protocol(value: object) -> bytes:
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= 255:
        raise ValueError(f'{shown(value)} is not a protocol name; write 1 to 255 bytes, such as "h2" or "http/1.1"')
    return value.encode()


def _text(description: str, **more: object) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "description": description, **more})


_DURATION_PATTERN = "[0-9]+ ?(ms|s|m|h|d)"

Duration = Annotated[float, PlainValidator(units.duration), _text("a duration", pattern=f"^{_DURATION_PATTERN}$")]
"""Seconds."""

DurationOrOff = Annotated[
    float,
    PlainValidator(partial(units.duration, zero_is_off=True)),
    WithJsonSchema({"type": ["string", "integer"], "pattern": f"^(0|{_DURATION_PATTERN})$", "maximum": 0}),
]
"""Seconds, 0.0 for off."""

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrOff = Annotated[int, Field(ge=0, le=2**31 - 1)]

ListenAddress = Annotated[Address, PlainValidator(addresses.listen_address), _text("an address to listen on")]
OptionalListenAddress = Annotated[
    Address | None, PlainValidator(_optional_listen_address), _text('an address to listen on, or "" for none')
]
DialAddress = Annotated[Address, PlainValidator(addresses.dial_address), _text("an address to connect to")]
RuntimeSocket = Annotated[
    Address, PlainValidator(addresses.runtime_socket), _text("the path of a unix socket, or an address")
]
OptionalSocketPath = Annotated[
    UnixAddress | None, PlainValidator(_optional_socket_path), _text('the path of a unix socket, or "" for none')
]
Network = Annotated[IPNetwork, PlainValidator(units.network), _text("a CIDR, or a single IP address")]
Pattern = Annotated[str, PlainValidator(names.name_pattern), _text("an exact name, *.NAME or .NAME")]
CertificateName = Annotated[str, PlainValidator(names.certificate_name), _text("a DNS name or an IP address")]
Protocol = Annotated[bytes, PlainValidator(_protocol), _text("an ALPN protocol name", minLength=1)]
AbsolutePath = Annotated[Path, PlainValidator(absolute_path), _text("an absolute path", pattern="^/")]
OptionalPath = Annotated[Path | None, PlainValidator(optional_path), _text('an absolute path, or ""')]

# TOML has lists where the values have tuples, and strings where they have enum members: only there, what pydantic calls
# lax is what is meant.
Converted = Strict(strict=False)
