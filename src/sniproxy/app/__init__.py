"""Puts the parts together.

`proxy` is the running program: start, signals, reload, drain. `build` makes the parts' own settings out of the
configuration, `resolve` keeps the addresses of servers given by name, `rights` gives root's up.

`explain`, `check`, `haproxy_lines` and `demo` are the commands of the same names, without their printing.
"""
