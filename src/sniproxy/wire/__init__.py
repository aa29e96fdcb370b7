"""Bytes in, values out: what stands on the wire, and nothing that touches a socket, a clock or a log.

Read `client_hello` first: it collects the first handshake message of a connection over any number of records
and segments and names what the client asks for. `proxy_header` is the PROXY protocol, `alert` what a refused
TLS client is told, `ja4` the fingerprint. `tls` holds the code points they share.

A reader here has three outcomes: a value, "need more" (None), or an error of the WireError family.
"""
