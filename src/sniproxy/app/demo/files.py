"""The files that the demo writes: two configurations, of which there is a copy with `--keep`, and a page."""

from __future__ import annotations

NAME = "www.demo.test"
INTERNAL_NAME = "internal.demo.test"
"""A second name, which the configuration keeps for one client."""

CLIENT = "127.0.0.2"
"""That client's address. All of 127.0.0.0/8 is this machine, and nothing has this one by itself."""

BUNDLE = f"{NAME}.pem"
"""What the certificate's file is called in HAProxy's directory."""

DRAIN_SECONDS = 5
"""shutdown_grace: a second more than HAProxy leaves an idle connection open."""

SNIPROXY_TOML = f"""\
[proxy]
listen = ["127.0.0.1:{{port}}"]
default_backend = "haproxy"
max_connections = 256
shutdown_grace = "{DRAIN_SECONDS}s"

[backends.haproxy]
servers = ["unix:{{directory}}/haproxy.sock"]    # with a PROXY v2 header, which is the default

# A name that is there for one client only.
[[routes]]
sni = ["{INTERNAL_NAME}"]
backend = "haproxy"
allow = ["{CLIENT}/32"]

[acme]
directory = "https://127.0.0.1:{{acme_port}}/dir"
ca_file = "{{directory}}/pebble/ca.pem"    # of that https; what is issued there has a root of its own
agree_to_terms = true
state_dir = "{{directory}}/state"
challenges = ["tls-alpn-01"]

[[certificates]]
names = ["{NAME}", "{INTERNAL_NAME}"]

[haproxy]
certificate_dir = "{{directory}}/certs"
runtime_sockets = ["{{directory}}/haproxy.admin"]

[admin]
listen = "127.0.0.1:{{admin_port}}"
control_socket = "{{directory}}/control.sock"
"""

HAPROXY_CFG = """\
global
    maxconn 200
    nbthread 1
    log stdout format raw local0
    stats socket unix@{directory}/haproxy.admin mode 600 level admin

defaults
    mode http
    log global
    option dontlognull
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    # A browser's idle connections are not to hold up the end.
    timeout http-request 4s
    timeout http-keep-alive 4s

frontend https
    bind unix@{directory}/haproxy.sock accept-proxy ssl crt {directory}/certs alpn h2,http/1.1
    unique-id-format %[fc_pp_unique_id]
    log-format "%ci:%cp %HM %HP %HV %ST %B %ID"
    http-request return status 200 content-type "text/html; charset=utf-8" lf-file {directory}/page.html
"""

# HAProxy fills it in. A name may hold anything that a client sends: what is not of a host name is replaced.
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>What HAProxy sees</title>
<style>
html { color-scheme: light dark }
body { font: 1.1em/1.5 system-ui, sans-serif; margin: 3em auto; max-width: 40em; padding: 0 1em }
th { text-align: left; padding-right: 2em; font-weight: normal; opacity: .7 }
td { font-family: ui-monospace, monospace }
</style>
<h1>What HAProxy sees</h1>
<p>This page comes from HAProxy. TLS ended there; sniproxy passed it on untouched, and told it who is asking.
<table>
<tr><th scope="row">src</th><td>%[src]</td></tr>
<tr><th scope="row">req.ver</th><td>%[req.ver]</td></tr>
<tr><th scope="row">ssl_fc_sni</th><td>%[ssl_fc_sni,regsub([^A-Za-z0-9._-],_,g)]</td></tr>
<tr><th scope="row">fc_pp_authority</th><td>%[fc_pp_authority,regsub([^A-Za-z0-9._-],_,g)]</td></tr>
<tr><th scope="row">fc_pp_unique_id</th><td>%[fc_pp_unique_id]</td></tr>
</table>
"""
