"""Puts the parts together.

`proxy` is the running program: start, signals, reload, drain. `certificates` is all that it does about certificates,
`control` how it is asked to, and `hooks` whom it tells. `build` makes the parts' own settings out of the configuration,
`resolve` keeps the addresses of servers given by name, `rights` gives root's up.

`explain`, `check`, `haproxy_lines`, `expiry`, `certbot` with `adoption`, `demo` and `doctor` are commands without their
printing.
"""
