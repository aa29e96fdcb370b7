"""Vector files: lines `key: value`, a blank line, hexadecimal digits. An unknown key is an error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

VECTORS = Path(__file__).parent.parent / "vectors"

_BYTES_PER_LINE = 48


@dataclass(frozen=True, kw_only=True)
class HelloVector:
    """The first flight of a client, and what is known about it.

    source: the client, its version and its options.
    expect: `ok`; what is broken is built where it is tested.
    server_name: the name as sent; None without one.
    alpn: the protocols offered, in order.
    versions: the versions offered, GREASE included.
    ech: whether encrypted_client_hello is there.
    """

    name: str
    source: str
    expect: str
    server_name: str | None
    alpn: tuple[bytes, ...]
    versions: tuple[int, ...]
    ech: bool
    ja4: str
    comment: str
    stream: bytes

    @property
    def normal_name(self) -> str | None:
        """The name in the form it is matched in: lower case, without the dot of the root."""
        return self.server_name.lower().removesuffix(".") if self.server_name else None

    @property
    def message(self) -> bytes:
        """The handshake message, its fragments joined by a loop that trusts them."""
        stream, message = self.stream, b""
        while stream:
            end = 5 + int.from_bytes(stream[3:5])
            message, stream = message + stream[5:end], stream[end:]
        return message


def read(path: Path) -> HelloVector:
    head, _, digits = path.read_text(encoding="ascii").partition("\n\n")
    fields: dict[str, str] = {}
    for line in head.splitlines():
        key, colon, value = line.partition(":")
        if not colon or key in fields:
            raise ValueError(f"{path.name}: {line!r} is not a key of its own")
        fields[key] = value.strip()
    vector = HelloVector(
        name=path.stem,
        source=fields.pop("source"),
        expect=fields.pop("expect"),
        server_name=fields.pop("server-name", None),
        alpn=tuple(name.encode() for name in fields.pop("alpn", "").split()),
        versions=tuple(int(version, 16) for version in fields.pop("versions").split()),
        ech=fields.pop("ech", "no") == "yes",
        ja4=fields.pop("ja4"),
        comment=fields.pop("comment", ""),
        stream=bytes.fromhex(digits),
    )
    if fields:
        raise ValueError(f"{path.name}: unknown keys {', '.join(fields)}")
    return vector


def write(path: Path, vector: HelloVector) -> None:
    lines = [f"source: {vector.source}", f"expect: {vector.expect}"]
    if vector.server_name is not None:
        lines.append(f"server-name: {vector.server_name}")
    if vector.alpn:
        lines.append("alpn: " + " ".join(name.decode("ascii") for name in vector.alpn))
    lines.append("versions: " + " ".join(f"{version:04x}" for version in vector.versions))
    if vector.ech:
        lines.append("ech: yes")
    lines.append(f"ja4: {vector.ja4}")
    if vector.comment:
        lines.append(f"comment: {vector.comment}")
    digits = vector.stream.hex()
    step = 2 * _BYTES_PER_LINE
    lines += ["", *(digits[start : start + step] for start in range(0, len(digits), step))]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def client_hellos() -> list[HelloVector]:
    """All recorded hellos, in the order of their names."""
    return [read(path) for path in sorted((VECTORS / "client_hello").glob("*.txt"))]
