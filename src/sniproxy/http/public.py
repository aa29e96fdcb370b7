"""Port 80: ACME's http-01 validations, and everything else sent on to https."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sniproxy.http.server import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable

CHALLENGE_PREFIX = "/.well-known/acme-challenge/"

# base64url, as RFC 8555 section 8.3 has it; looked at before anything is looked up.
_token = re.compile(r"[A-Za-z0-9_-]{1,128}").fullmatch
# What may stand in a Location: no space, no control character, nothing that begins another header.
_safe_target = re.compile(r"/[\x21-\x7e]*").fullmatch
_host = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """Answers port 80.

    key_authorization: the answer to a pending http-01 token, None for any other. https_port: where to redirect to.
    """

    redirect_to_https: bool
    key_authorization: Callable[[str], str | None] = lambda _token: None
    https_port: int = 443

    def __call__(self, request: Request) -> Response:
        """The answer to one request."""
        if request.path.startswith(CHALLENGE_PREFIX):
            if request.method not in ("GET", "HEAD"):
                return Response(status=405, body=b"method not allowed\n", headers=(("Allow", "GET, HEAD"),))
            token = request.path[len(CHALLENGE_PREFIX) :]
            answer = self.key_authorization(token) if _token(token) else None
            if answer is None:
                return Response(status=404, body=b"no such challenge\n")
            return Response(status=200, body=answer.encode("ascii"), content_type="application/octet-stream")
        if not self.redirect_to_https:
            return Response(status=404, body=b"not found\n")
        return self._redirect(request)

    def _redirect(self, request: Request) -> Response:
        target = request.path + (f"?{request.query}" if request.query else "")
        host = _host(request.headers.get("host", ""))
        if host is None or not _safe_target(target):
            return Response(status=400, body=b"bad request\n")
        port = "" if self.https_port == 443 else f":{self.https_port}"
        return Response(status=308, headers=(("Location", f"https://{host[1]}{port}{target}"),))
