"""A name server that knows what it is told, in the test's own loop: errors and silence, too."""

from __future__ import annotations

import asyncio

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from sniproxy.model import TcpAddress
from tests.support.processes import LOCALHOST

SILENCE = "silence"


class ScriptedDns(asyncio.DatagramProtocol):
    """Answers over UDP, from `start` until `close`. A name of which nothing is known is NXDOMAIN.

    records: by name and type, as in zone files; an empty list is a name without records of that type. errors: by name,
    or name and type: a response code, `SERVFAIL`, or SILENCE. asked: names and types, in order.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.errors: dict[str | tuple[str, str], str] = {}
        self.asked: list[tuple[str, str]] = []
        self._transport: asyncio.DatagramTransport

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, (LOCALHOST, 0))

    def close(self) -> None:
        self._transport.close()

    @property
    def address(self) -> TcpAddress:
        host, port = self._transport.get_extra_info("sockname")
        return TcpAddress(host, port)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        error = self.errors.get(name) or self.errors.get((name, kind))
        if error == SILENCE:
            return
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        records = self.records.get((name, kind), [])
        if error:
            reply.set_rcode(dns.rcode.from_text(error))
        elif records:
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *records))
        elif not any(known == name for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(reply.to_wire(), address)
