"""What would become of a connection, and why: the same reader and the same router as the running proxy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sniproxy.app import build
from sniproxy.errors import BadProxyHeader, HelloTooLarge, MalformedHello, NotTls
from sniproxy.model import HelloKind
from sniproxy.policy.routing import ACME_TLS_1, Networks
from sniproxy.wire.client_hello import HelloReader, is_host_name
from sniproxy.wire.ja4 import ja4
from sniproxy.wire.proxy_header import decode

if TYPE_CHECKING:
    from sniproxy.config import Config
    from sniproxy.policy.routing import Decision

_ONLY_WHILE_PENDING = " (answered here only while a validation of ours is pending for the name)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What becomes of a connection. `backend` is None where it is refused; `ja4` where there is no hello."""

    kind: HelloKind
    sni: str | None
    alpn: tuple[str, ...]
    backend: str | None
    reason: str
    ja4: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As `explain --json` and `--jsonl` print it."""
        return {
            "kind": self.kind.value,
            "sni": self.sni,
            "alpn": list(self.alpn),
            "backend": self.backend,
            "reason": self.reason,
            "ja4": self.ja4,
        }


class Explainer:
    """Explains connections to one configuration."""

    def __init__(self, config: Config) -> None:
        self._router = build.router(config)
        self._max_hello = config.proxy.max_hello
        self._proxied = Networks(config.proxy.accept_proxy_from)

    def name(self, sni: str | None, alpn: tuple[str, ...], client: str) -> Explanation:
        """A client at this address that asks for this name; `sni` may have upper case and a trailing dot."""
        name = sni.lower().removesuffix(".") if sni else None
        offered = tuple(protocol.encode("latin-1", "replace") for protocol in alpn)
        return self._tls(name or None, offered, client, None)

    def first_bytes(self, data: bytes, client: str) -> Explanation:
        """A client at this address that sends these bytes, and so far nothing else."""
        try:
            if client in self._proxied:
                decoded = decode(data)
                if decoded is None:
                    return _verdict(HelloKind.INCOMPLETE, "the PROXY header is not complete")
                header, length = decoded
                client = header.source[0] if header.source else client
                data = data[length:]
            hello = HelloReader(self._max_hello).feed(data)
        except BadProxyHeader as error:
            return _verdict(HelloKind.MALFORMED, f"{error}, and this sender must send one")
        except NotTls as error:
            decision = self._router.not_tls()
            return _verdict(HelloKind.NOT_TLS, f"{error}: {decision.reason}", decision)
        except MalformedHello as error:
            return _verdict(HelloKind.MALFORMED, str(error))
        except HelloTooLarge as error:
            return _verdict(HelloKind.TOO_LARGE, str(error))
        if hello is None:
            return _verdict(HelloKind.INCOMPLETE, "the ClientHello is not complete")
        return self._tls(hello.server_name, hello.alpn, client, ja4(hello))

    def _tls(self, name: str | None, alpn: tuple[bytes, ...], client: str, fingerprint: str | None) -> Explanation:
        host = name if name is not None and is_host_name(name) else None
        decision = self._router.tls(host, alpn, client)
        reason = decision.reason
        if name is not None and host is None:
            reason = f"the server name is not a host name: {reason}"
        if alpn == ACME_TLS_1 and host is not None:
            reason += _ONLY_WHILE_PENDING
        return Explanation(
            kind=HelloKind.NO_SNI if name is None else HelloKind.TLS,
            sni=name,
            alpn=tuple(protocol.decode("latin-1") for protocol in alpn),
            backend=decision.backend,
            reason=reason,
            ja4=fingerprint,
        )


def _verdict(kind: HelloKind, reason: str, decision: Decision | None = None) -> Explanation:
    return Explanation(kind=kind, sni=None, alpn=(), backend=decision.backend if decision else None, reason=reason)
