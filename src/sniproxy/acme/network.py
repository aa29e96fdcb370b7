"""Requests to a CA and the signatures under them: all that blocks, and all that is slow to import.

Only a client's own thread imports this module: `acme`, `josepy` and `requests` take a third of a second and 30 MiB.
`acme` signs, `requests` sends. The client of `acme` is not used: it loses Retry-After, the bodies of 409 and the nonces
of errors, and sleeps where it waits.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import time
from dataclasses import dataclass, field
from http.client import HTTPException, RemoteDisconnected
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import requests
from acme import jws
from cryptography.hazmat.primitives.asymmetric import rsa
from josepy.json_util import decode_b64jose
from josepy.jwa import ES256, ES384, HS256, RS256
from josepy.jwk import JWKEC, JWKRSA, JWKOct
from requests.__version__ import __version__ as requests_version
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from sniproxy import __version__
from sniproxy.acme.resources import http_date, is_loopback, retry_after_seconds
from sniproxy.bundle import utc_now
from sniproxy.errors import AcmeError, CaUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from josepy.jwa import JWASignature
    from josepy.jwk import JWK
    from urllib3.response import HTTPResponse

    from sniproxy.bundle import PrivateKey

CONNECT_SECONDS: Final = 10.0
"""To each address of the CA, TLS included. Public CAs take a tenth of a second from anywhere."""

ANSWER_SECONDS: Final = 20.0
"""From one byte to the next. Whoever waits for the whole of it has a deadline of his own, and cuts."""

IDLE_SECONDS: Final = 4.0
"""For which an idle connection is used again. Apache closes one after 5 s: a request that crosses with that is lost,
and of a POST nobody could tell whether it was carried out."""

USER_AGENT: Final = f"sniproxy/{__version__} python-requests/{requests_version}"
"""RFC 8555 section 6.1 asks for the client and its HTTP library."""

_HEADERS = {"User-Agent": USER_AGENT, "Accept-Language": "en", "Accept-Encoding": "identity"}
_READ_BYTES = 64 * 1024
_SILENT = ("acme", "josepy", "requests", "urllib3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer of the CA's, read to its end.

    links: the values of its Link headers. retry_after: seconds. clock_skew: seconds by which the CA's clock is ahead.
    """

    status: int
    body: bytes = field(repr=False)
    content_type: str = ""
    location: str | None = None
    nonce: str | None = field(default=None, repr=False)
    links: tuple[str, ...] = ()
    retry_after: float | None = None
    clock_skew: float | None = None


class Line:
    """The connection in use. Whoever waits for an answer in vain may cut it, from any thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._is_cut = False

    def use(self, connection: object) -> None:
        """This is the one in use from now on. Raises ConnectionAbortedError if nobody waits any more."""
        self._socket = connection if isinstance(connection, socket.socket) else None
        if self._is_cut:  # looked at last: `cut` has seen either the socket or nothing
            raise ConnectionAbortedError

    def cut(self) -> None:
        """Ends what is waited for now; nothing is sent any more."""
        self._is_cut = True
        if self._socket is not None:
            try:
                # Not the method of a TLS socket, which takes the TLS from under the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError:
                pass  # closed already


class Network:
    """Sends requests, one at a time, in one thread; only `cut` may be called from others. Whoever makes it closes it.

    ca_file: whom to trust; None for whom the system trusts. Raises AcmeError where it cannot be read.
    """

    def __init__(self, ca_file: Path | None) -> None:
        _silence()
        self._line = Line()
        self._adapter = _Adapter(_trust(ca_file), self._line)
        self._idle_since = 0.0

    def get(self, url: str, *, limit: int) -> Reply:
        """What is there, up to `limit` bytes. Raises CaUnreachable."""
        return self._exchange("GET", url, {"Accept": "application/json"}, None, limit)

    def head(self, url: str) -> Reply:
        """Its headers alone. Raises CaUnreachable."""
        return self._exchange("HEAD", url, {}, None, 0)

    def post(
        self,
        url: str,
        payload: Mapping[str, Any] | None,
        *,
        key: PrivateKey,
        account_url: str | None,
        nonce: str,
        accept: str,
        limit: int,
    ) -> Reply:
        """A signed request (RFC 8555 section 6.2), and the answer, up to `limit` bytes.

        Without a payload it is a POST-as-GET; without an account the public key goes with it. Raises CaUnreachable, and
        AcmeError for a key that no CA takes.
        """
        content = b"" if payload is None else json.dumps(payload).encode()
        signed = _signed(content, key, url, nonce=nonce, account_url=account_url)
        headers = {"Accept": accept, "Content-Type": "application/jose+json"}
        return self._exchange("POST", url, headers, json.dumps(signed).encode(), limit)

    @staticmethod
    def external_account(key: PrivateKey, url: str, *, kid: str, mac_key: bytes) -> dict[str, Any]:
        """Proof that whoever has `key` is a customer of the CA (RFC 8555 section 7.3.4); url: newAccount."""
        public = json.dumps(_signer(key)[0].public_key().to_json()).encode()
        return _as_json(jws.JWS.sign(public, key=JWKOct(key=mac_key), alg=HS256, nonce=None, url=url, kid=kid))

    @staticmethod
    def key_change(old: PrivateKey, new: PrivateKey, url: str, account_url: str) -> dict[str, Any]:
        """The new key's consent to be that of the account (RFC 8555 section 7.3.5); url: keyChange."""
        change = {"account": account_url, "oldKey": _signer(old)[0].public_key().to_json()}
        return _signed(json.dumps(change).encode(), new, url, nonce=None, account_url=None)

    def cut(self) -> None:
        """Ends what is going on, and everything to come."""
        self._line.cut()

    def close(self) -> None:
        """Closes its connections."""
        self._adapter.close()

    def _exchange(self, method: str, url: str, headers: dict[str, str], body: bytes | None, limit: int) -> Reply:
        host = urlsplit(url).hostname or ""
        if time.monotonic() - self._idle_since > IDLE_SECONDS:
            self._adapter.close()  # its connections; it can go on
        try:
            # Not by a session, which reads a redirect to its end, however far that is, and looks for passwords in
            # ~/.netrc. Of the environment, proxies alone are for us, and not on the way to this machine itself.
            response = self._adapter.send(
                requests.Request(method, url, headers={**_HEADERS, **headers}, data=body).prepare(),
                stream=True,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                proxies={} if is_loopback(host) else get_environ_proxies(url),
            )
            with response:
                return _reply(response.status_code, response.raw, limit)
        except (HTTPError, OSError, HTTPException, ValueError) as error:
            # Never in the library's words: they quote URLs, and that of a proxy may have a password in it.
            raise CaUnreachable(f"the CA at {host}{_port(url)} cannot be reached: {_reason(error)}") from None
        finally:
            self._idle_since = time.monotonic()


class _Adapter(HTTPAdapter):
    """Trusts whom it is told to, instead of the list that comes with `requests`, and tells the line what is in use."""

    def __init__(self, trust: ssl.SSLContext, line: Line) -> None:
        self._trust = trust
        self._connections = {"http": _on_line(HTTPConnection, line), "https": _on_line(HTTPSConnection, line)}
        super().__init__(pool_connections=4, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._trust, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._trust, **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """The context knows; this would add the library's own list to it."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = self._connections[pool.scheme or "https"]
        return pool


def _on_line(base: type[HTTPConnection], line: Line) -> type[HTTPConnection]:
    """A kind of connection that tells the line of itself, before anything is sent and before each answer."""

    class OnLine(base):  # type: ignore[misc,valid-type]
        def connect(self) -> None:
            super().connect()
            line.use(self.sock)

        def getresponse(self) -> HTTPResponse:
            line.use(self.sock)
            response: HTTPResponse = super().getresponse()
            return response

    return OnLine


def _reply(status: int, raw: Any, limit: int) -> Reply:
    chunks = []
    size = 0
    while chunk := raw.read(_READ_BYTES, decode_content=False):
        size += len(chunk)
        if size > limit:
            raise CaUnreachable(f"the CA's answer has more than {limit} bytes")
        chunks.append(chunk)
    headers = raw.headers
    now = utc_now()
    # What came out of a cache was dated when it went in.
    date = None if "Age" in headers else http_date(headers.get("Date"))
    return Reply(
        status=status,
        body=b"".join(chunks),
        content_type=headers.get("Content-Type", ""),
        location=headers.get("Location"),
        nonce=headers.get("Replay-Nonce"),
        links=tuple(headers.getlist("Link")),
        retry_after=retry_after_seconds(headers.get("Retry-After"), date or now),
        clock_skew=None if date is None else (date - now).total_seconds(),
    )


# ---------------------------------------------------------------------------------------------------------- signatures


def _signed(content: bytes, key: PrivateKey, url: str, *, nonce: str | None, account_url: str | None) -> dict[str, Any]:
    jwk, algorithm = _signer(key)
    decoded = None if nonce is None else decode_b64jose(nonce)
    return _as_json(jws.JWS.sign(content, key=jwk, alg=algorithm, nonce=decoded, url=url, kid=account_url))


def _as_json(signed: jws.JWS) -> dict[str, Any]:
    document: dict[str, Any] = signed.to_json()
    return document


def _signer(key: PrivateKey) -> tuple[JWK, JWASignature]:
    if isinstance(key, rsa.RSAPrivateKey):
        return JWKRSA(key=key), RS256
    algorithm = {"secp256r1": ES256, "secp384r1": ES384}.get(key.curve.name)
    if algorithm is None:
        raise AcmeError(f"an account's key is ECDSA P-256, P-384 or RSA, and this one is {key.curve.name}")
    return JWKEC(key=key), algorithm


# ------------------------------------------------------------------------------------------------------------- trust


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise AcmeError(f"acme.ca_file: {ca_file} has no certificate in PEM") from None
    except OSError as error:
        raise AcmeError(f"acme.ca_file: {ca_file} cannot be read: {error.strerror}") from None


def _silence() -> None:
    """Keeps the libraries' log lines to themselves: they quote URLs, and the bodies of requests with all in them."""
    for name in _SILENT:
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


# ------------------------------------------------------------------------------------------------------------- words


def _reason(error: BaseException) -> str:
    """What went wrong, out of all that the libraries have wrapped around it."""
    causes = list(_causes(error))
    through = "through the proxy of HTTPS_PROXY: " if isinstance(error, requests.exceptions.ProxyError) else ""
    for kind, words in _WORDS:
        for cause in causes:
            if isinstance(cause, kind):
                return f"{through}{words(cause)}"
    return through + type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    left: list[Any] = [error]
    while left:
        cause = left.pop(0)
        if isinstance(cause, BaseException) and not any(cause is other for other in seen):
            seen.append(cause)
            yield cause
            left += [getattr(cause, "reason", None), *cause.args, cause.__cause__, cause.__context__]


_WORDS: Final[tuple[tuple[type[BaseException], Any], ...]] = (
    (
        ssl.SSLCertVerificationError,
        lambda error: f"its certificate is not trusted, {error.verify_message}; acme.ca_file says whom to trust",
    ),
    (ssl.SSLError, lambda error: f"TLS failed, {(error.reason or 'the connection was cut').lower().replace('_', ' ')}"),
    (socket.gaierror, lambda error: str(error.strerror)),
    (RemoteDisconnected, lambda _: "it has closed the connection without an answer"),
    (requests.exceptions.Timeout, lambda _: "it does not answer"),
    (TimeoutError, lambda _: "it does not answer"),
    (ConnectionError, lambda error: str(error.strerror or "the connection broke")),
    (HTTPException, lambda _: "what it answers is not HTTP, or not all of it"),
)


def _port(url: str) -> str:
    port = urlsplit(url).port
    return "" if port is None else f":{port}"
