"""`sniproxy demo`: a complete set-up on this machine's loopback, and the proof that it works.

`story` has the steps, in their order. `setup` has what runs: `acme_ca`, the proxy and HAProxy, as `programs`, with the
`files` that they read and the `certificate` of the CA itself. `traffic` is the requests that must not fail meanwhile.
"""
