"""Delivery of certificates to a running HAProxy, and the proof that they are served.

`delivery` tells the way from top to bottom. It uses `disk` for the file, `names` for what HAProxy calls it, `runtime`
for the runtime API, `reload` where that cannot do it, and `proof`, whose handshakes are in `handshake`.
"""
