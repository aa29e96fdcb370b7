"""`sniproxy doctor`: the way of a certificate, looked at step by step, without changing anything.

`walk` has the order; `store`, `ca`, `dns_records`, `reach` and `haproxy` look at one thing each, and say what they have
found as a `diagnosis`.
"""
