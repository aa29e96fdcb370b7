"""How a test makes an ACME CA misbehave: rules for what happens to requests, each used up after so many of them.

Every method that makes one takes

    resource    which requests: a field of the directory (`newNonce`, `newAccount`, `newOrder`, `revokeCert`,
                `keyChange`, `renewalInfo`), `directory` itself, `account`, `order`, `authorization`, `challenge`,
                `finalize` or `certificate`; None is any
    times       for how many of them; None is for good
    skip        how many of them are let pass before the first

Several may hold for the same request, the oldest first. Those that answer in the CA's place queue up instead, one for
each request: `fail(times=2)` and then `html()` is two failures, then a page.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tests.support.processes import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ERROR_URN = "urn:ietf:params:acme:error:"
SIGNED = (
    "newAccount",
    "newOrder",
    "revokeCert",
    "keyChange",
    "account",
    "orders",
    "order",
    "authorization",
    "challenge",
    "finalize",
    "certificate",
)
RESOURCES = ("directory", "newNonce", "renewalInfo", *SIGNED)
JSON, PROBLEM_JSON, PEM_CHAIN = "application/json", "application/problem+json", "application/pem-certificate-chain"

COMMON_HEADERS = ("Date", "Link", "Replay-Nonce")
"""They are on every reply, whatever it says."""

_POLL_SECONDS = 0.02

MAX_HANG_SECONDS = 2 * PATIENCE_SECONDS
"""A test that has forgotten to let go of a request does not hang for good."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as it came.

    number: counted from 1. payload: what was signed; None for POST-as-GET, for GET, and for what cannot be read.
    account: the URL of the account that signed it, None where a key did.
    """

    number: int
    resource: str
    method: str
    path: str
    payload: dict[str, Any] | None = None
    account: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(kw_only=True)
class Reply:
    """A reply, and how it is put on the wire.

    length: what Content-Length says; None is the truth, "" leaves it out. cut: after so many bytes of the body the
    connection is closed; -1 is before the first byte of the head. drip: so many seconds after each byte of the body.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: str | None = None
    cut: int | None = None
    drip: float = 0.0
    repeat: int = 1

    @classmethod
    def of_json(cls, content: Any, status: int = 200, content_type: str = JSON, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status=status, headers={"Content-Type": content_type, **named}, body=json.dumps(content).encode())


class Problem(Exception):
    """Answered with a problem document (RFC 8555 section 6.7). `type` is its last part: `malformed`."""

    def __init__(
        self,
        type: str,  # noqa: A002  the document's own word
        detail: str,
        status: int = 400,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.document = {"type": ERROR_URN + type, "detail": detail, "status": status, **more}
        self.status = status
        self.headers = dict(headers or {})

    def reply(self) -> Reply:
        reply = Reply.of_json(self.document, self.status, PROBLEM_JSON)
        reply.headers.update(self.headers)
        return reply


@dataclass(kw_only=True, eq=False)
class _Rule:
    """What happens at each of the four moments of a request. `instead`: nothing is carried out, this is the reply."""

    resources: tuple[str, ...]
    left: float
    skip: int
    received: Callable[[Request], object] | None = None
    instead: Callable[[], Reply] | None = None
    edit: Callable[[Reply], Reply] | None = None
    carried_out: Callable[[Request], object] | None = None
    answered: Callable[[Request], object] | None = None

    def takes(self, request: Request) -> bool:
        """Whether it holds for this request; counts it."""
        if request.resource not in self.resources or not self.left:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.left -= 1
        return True


class Faults:
    """The rules of one CA, and the methods that make them."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._rules_lock = threading.Lock()
        self._closing = threading.Event()

    # ------------------------------------------------------------------ replies that are errors

    def fail(
        self,
        resource: str | None,
        *,
        status: int = 500,
        problem: str | Mapping[str, Any] | None = "serverInternal",
        retry_after: str | None = None,
        headers: Mapping[str, str] | None = None,
        carried_out: bool = False,
        times: int | None = 1,
        skip: int = 0,
    ) -> None:
        """Answers with an error.

        problem: the last part of the type, or a whole document, or None for no body. retry_after: as in the header, a
        number of seconds or an HTTP date. carried_out: the request takes effect, and then the answer is this.
        """
        document = (
            {"type": ERROR_URN + problem, "detail": f"scripted {problem}"} if isinstance(problem, str) else problem
        )
        reply = Reply(status=status) if document is None else Reply.of_json(document, status, PROBLEM_JSON)
        reply.headers.update(headers or {})
        if retry_after is not None:
            reply.headers["Retry-After"] = retry_after
        self._answer(resource, reply, carried_out, times, skip)

    def bad_nonce(self, times: int | None = 1, resource: str | None = None, *, skip: int = 0) -> None:
        """Refuses nonces that are good; the answer has a new one (RFC 8555 section 6.5)."""

        def instead() -> Reply:
            return Problem("badNonce", "scripted badNonce").reply()

        assert resource is None or resource in SIGNED, f"{resource} is not signed: it has no nonce"
        self._add(resource, times, skip, among=SIGNED, instead=instead)

    def answer(
        self,
        resource: str | None,
        body: bytes | Mapping[str, Any],
        *,
        status: int = 200,
        content_type: str = JSON,
        headers: Mapping[str, str] | None = None,
        carried_out: bool = False,
        times: int | None = 1,
        skip: int = 0,
    ) -> None:
        """Answers with this."""
        content = body if isinstance(body, bytes) else json.dumps(dict(body)).encode()
        reply = Reply(status=status, headers={"Content-Type": content_type, **(headers or {})}, body=content)
        self._answer(resource, reply, carried_out, times, skip)

    def html(self, resource: str | None, *, status: int = 502, times: int | None = 1, skip: int = 0) -> None:
        """Answers with a page, as the proxy in front of a CA does that is down."""
        page = b"<!doctype html><title>Bad Gateway</title><h1>502</h1>\n"
        self.answer(resource, page, status=status, content_type="text/html", times=times, skip=skip)

    def huge(
        self,
        resource: str | None,
        size: int = 1 << 30,
        *,
        status: int = 200,
        declared: bool = True,
        times: int | None = 1,
        skip: int = 0,
    ) -> None:
        """Answers with JSON of so many bytes; `declared`: Content-Length tells. They are sent as far as they are read."""
        piece = b" " * 65536
        length = str(size) if declared else ""

        def instead() -> Reply:
            repeat = max(1, size // len(piece))
            return Reply(status=status, headers={"Content-Type": JSON}, body=piece, length=length, repeat=repeat)

        self._add(resource, times, skip, instead=instead)

    # ------------------------------------------------------------------ replies that are changed

    def edit(
        self,
        resource: str | None,
        change: Callable[[dict[str, Any]], Any],
        *,
        times: int | None = 1,
        skip: int = 0,
    ) -> None:
        """Changes the JSON of the reply: in place, or what `change` returns, of whatever type, takes its place."""

        def edit(reply: Reply) -> Reply:
            content = json.loads(reply.body)
            changed = change(content)
            reply.body = json.dumps(content if changed is None else changed).encode()
            return reply

        self._add(resource, times, skip, edit=edit)

    def omit(self, resource: str | None, *fields: str, times: int | None = 1, skip: int = 0) -> None:
        """Leaves fields out of the JSON of the reply."""

        def change(content: dict[str, Any]) -> None:
            for name in fields:
                content.pop(name, None)

        self.edit(resource, change, times=times, skip=skip)

    def headers(
        self, resource: str | None, changes: Mapping[str, str | None], *, times: int | None = 1, skip: int = 0
    ) -> None:
        """Sets headers of the reply; None leaves one out. For Content-Type, Location, Retry-After, Replay-Nonce…"""

        def edit(reply: Reply) -> Reply:
            for name, value in changes.items():
                if value is None:
                    reply.headers.pop(name, None)
                else:
                    reply.headers[name] = value
            return reply

        self._add(resource, times, skip, edit=edit)

    # ------------------------------------------------------------------ the way to the client

    def cut(self, resource: str | None, after: int | None = None, *, times: int | None = 1, skip: int = 0) -> None:
        """Closes the connection after so many bytes of the reply's body; None: without any reply.

        The request has taken effect all the same.
        """

        def edit(reply: Reply) -> Reply:
            reply.cut = -1 if after is None else after
            return reply

        self._add(resource, times, skip, edit=edit)

    def drip(self, resource: str | None, seconds: float = 0.05, *, times: int | None = 1, skip: int = 0) -> None:
        """Sends the body of the reply byte by byte, with so many seconds between them."""

        def edit(reply: Reply) -> Reply:
            reply.drip = seconds
            return reply

        self._add(resource, times, skip, edit=edit)

    def hang(
        self,
        resource: str | None,
        *,
        until: threading.Event | None = None,
        carried_out: bool = False,
        times: int | None = 1,
        skip: int = 0,
    ) -> threading.Event:
        """Holds requests until the event is set that is returned, or the CA is closed.

        carried_out: they take effect first, and it is the reply that is held.
        """
        event = until or threading.Event()

        def wait(request: Request) -> None:
            self._pause(event)

        self._add(resource, times, skip, **{"carried_out" if carried_out else "received": wait})
        return event

    def delay(self, resource: str | None, seconds: float, *, times: int | None = 1, skip: int = 0) -> None:
        """Holds requests for so long before they are looked at."""
        self._add(resource, times, skip, received=lambda request: self._closing.wait(seconds))

    # ------------------------------------------------------------------ between requests

    def on(
        self,
        resource: str | None,
        call: Callable[[Request], object],
        *,
        when: Literal["received", "carried out", "answered"] = "carried out",
        times: int | None = 1,
        skip: int = 0,
    ) -> None:
        """Calls back, in the CA's thread: before a request takes effect, before its reply, or after it.

        `when="carried out"` is the place to kill a client: the CA has done it, the client does not know. With
        `resource=None` and `skip=n`, n goes through all moments of an order.
        """
        self._add(resource, times, skip, **{when.replace(" ", "_"): call})

    def heal(self) -> None:
        """Forgets all rules."""
        with self._rules_lock:
            self._rules.clear()

    # ------------------------------------------------------------------ for the CA

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    def pause(self, seconds: float) -> bool:
        """Waits; True if the CA was closed meanwhile."""
        return self._closing.wait(seconds)

    def _answer(self, resource: str | None, reply: Reply, carried_out: bool, times: int | None, skip: int) -> None:
        def fresh(common: Mapping[str, str]) -> Reply:
            return Reply(status=reply.status, headers={**common, **reply.headers}, body=reply.body)

        def edit(original: Reply) -> Reply:
            return fresh({name: value for name, value in original.headers.items() if name in COMMON_HEADERS})

        if carried_out:
            self._add(resource, times, skip, edit=edit)
        else:
            self._add(resource, times, skip, instead=lambda: fresh({}))

    def _add(
        self, resource: str | None, times: int | None, skip: int, *, among: Sequence[str] = RESOURCES, **moments: Any
    ) -> None:
        assert resource in (None, *among), f"no resource {resource!r}; there are {among}"
        resources = tuple(among) if resource is None else (resource,)
        left = float("inf") if times is None else times
        with self._rules_lock:
            self._rules.append(_Rule(resources=resources, left=left, skip=skip, **moments))

    def _rules_for(self, request: Request) -> list[_Rule]:
        found: list[_Rule] = []
        with self._rules_lock:
            for rule in self._rules:
                if rule.instead and any(other.instead for other in found):
                    continue
                if rule.takes(request):
                    found.append(rule)
            self._rules = [rule for rule in self._rules if rule.left]
        return found

    def _pause(self, event: threading.Event) -> None:
        """Until the event, or the end of the CA."""
        deadline = time.monotonic() + MAX_HANG_SECONDS
        while not event.wait(_POLL_SECONDS) and not self._closing.is_set() and time.monotonic() < deadline:
            pass
