"""Records what real TLS clients send first: `python -m tests.vectors.record [NAME…]` from the root of the tree.

Starts each client that is installed against a listener on loopback, takes its first handshake message, and writes it
to client_hello/NAME.txt with what tlslite-ng reads in it. Run without names it makes all of them anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support import oracles, vectors

SECONDS = 30
NAME = "www.example.org"
LONG_NAME = ".".join(("a" * 63, "b" * 63, "c" * 63, "d" * 57, "org"))

PYTHON_SSL = f"""
import socket, ssl, sys
context = ssl._create_unverified_context()
context.set_alpn_protocols(["http/1.1"])
context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))), server_hostname="{NAME}")
"""

CURL_CFFI = f"""
import sys
from curl_cffi import CurlOpt, requests
port, browser = sys.argv[1:]
requests.get(
    f"https://{NAME}:{{port}}/", impersonate=browser, verify=False,
    curl_options={{CurlOpt.RESOLVE: [f"{NAME}:{{port}}:127.0.0.1"]}},
)
"""

NODE = """
const [port, servername, ...ALPNProtocols] = process.argv.slice(1)
require("tls").connect({host: "127.0.0.1", port, servername, ALPNProtocols}).on("error", () => {})
"""

JAVA = """
import java.util.List;
import javax.net.ssl.*;
class Greet {
    public static void main(String[] args) throws Exception {
        var socket = (SSLSocket) SSLSocketFactory.getDefault().createSocket("127.0.0.1", Integer.parseInt(args[0]));
        var parameters = socket.getSSLParameters();
        parameters.setServerNames(List.of(new SNIHostName(args[1])));
        if (args.length > 2) parameters.setApplicationProtocols(args[2].split(","));
        socket.setSSLParameters(parameters);
        socket.startHandshake();
    }
}
"""


@dataclass(frozen=True)
class Client:
    """A client and how to start it: `{port}` in `command` is where the listener is."""

    program: str
    source: str
    command: tuple[str, ...]
    comment: str = ""


def version_of(*command: str) -> str:
    """The first dotted number a program prints about itself; `?` without one."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except OSError:
        return "?"
    found = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
    return found.group() if found else "?"


def openssl(*options: str, comment: str = "") -> Client:
    source = f"OpenSSL {version_of('openssl', 'version')} s_client {' '.join(options)}"
    command = ("openssl", "s_client", "-connect", "127.0.0.1:{port}", *options)
    return Client("openssl", source, command, comment)


def curl(*options: str) -> Client:
    source = f"curl {version_of('curl', '--version')} (OpenSSL) {' '.join(options)}"
    target = ("--connect-to", "::127.0.0.1:{port}", f"https://{NAME}/")
    return Client("curl", source, ("curl", "-sk", *options, *target))


def gnutls(*options: str) -> Client:
    source = f"GnuTLS {version_of('gnutls-cli', '--version')} gnutls-cli {' '.join(options)}"
    return Client("gnutls-cli", source, ("gnutls-cli", "--insecure", *options, "-p", "{port}", "127.0.0.1"))


def nss(*options: str, comment: str = "") -> Client:
    packaged = version_of("dpkg-query", "-W", "-f", "${Version}", "libnss3-tools")
    command = ("tstclnt", "-D", "-o", "-h", "127.0.0.1", "-p", "{port}", *options)
    return Client("tstclnt", f"NSS {packaged} tstclnt {' '.join(options)}", command, comment)


def node(*protocols: str) -> Client:
    source = f"Node {version_of('node', '--version')} tls.connect {' '.join(protocols)}"
    return Client("node", source, ("node", "-e", NODE, "{port}", NAME, *protocols))


def java(*arguments: str) -> Client:
    source = f"Java {version_of('java', '--version')} SSLSocket {' '.join(arguments)}"
    return Client("java", source, ("java", "{java}", "{port}", NAME, *arguments))


def browser(profile: str, comment: str = "") -> Client:
    version = version_of(sys.executable, "-c", "import curl_cffi; print(curl_cffi.__version__)")
    return Client(
        sys.executable,
        f"curl_cffi {version} as {profile}",
        (sys.executable, "-c", CURL_CFFI, "{port}", profile),
        comment,
    )


def clients() -> dict[str, Client]:
    rustls = f"uv {version_of('uv', '--version')} (rustls)"
    wget = f"Wget {version_of('wget', '--version')} (GnuTLS)"
    git = f"git {version_of('git', '--version')} (libcurl, GnuTLS)"
    found = {
        "openssl": openssl("-servername", NAME),
        "openssl-tls1": openssl("-servername", NAME, "-tls1", "-cipher", "ALL:@SECLEVEL=0"),
        "openssl-tls1-2": openssl("-servername", NAME, "-tls1_2"),
        "openssl-tls1-3": openssl("-servername", NAME, "-tls1_3"),
        "openssl-alpn": openssl("-servername", NAME, "-alpn", "h2,http/1.1"),
        "openssl-acme-tls-1": openssl("-servername", NAME, "-alpn", "acme-tls/1", comment="RFC 8737 section 3"),
        "openssl-h2-acme-tls-1": openssl(
            "-servername", NAME, "-alpn", "h2,acme-tls/1", comment="no challenge: two protocols"
        ),
        "openssl-acme-invalid": openssl(
            "-servername", "AB12.cd34.Acme.Invalid", comment="as tls-sni-01 validations were"
        ),
        "openssl-no-name": openssl("-noservername"),
        "openssl-capitals-and-dot": openssl("-servername", "WWW.Example.ORG."),
        "openssl-address-as-name": openssl("-servername", "192.0.2.1", comment="which RFC 6066 section 3 forbids"),
        "openssl-arpa-name": openssl(
            "-servername",
            "1.2.0.192.in-addr.arpa",
            "-alpn",
            "acme-tls/1",
            comment="an address, as RFC 8738 section 6 names it",
        ),
        "openssl-long-name": openssl(
            "-servername", LONG_NAME, "-tls1_2", comment="253 characters, the longest there is"
        ),
        "openssl-bare": openssl("-noservername", "-tls1_2", "-cipher", "AES128-SHA", "-no_ticket", "-no_etm"),
        "openssl-large-share": openssl(
            "-servername", NAME, "-groups", "ffdhe8192:ffdhe6144", comment="more than one segment"
        ),
        "openssl-three-records": openssl(
            "-servername", NAME, "-groups", "ffdhe8192", "-max_send_frag", "512", comment="over several records"
        ),
        "openssl-psk": openssl("-servername", NAME, "-psk", "00112233", "-psk_identity", "someone", "-status"),
        "curl": curl(),
        "curl-http1": curl("--http1.1"),
        "curl-tls1-2": curl("--http1.1", "--tls-max", "1.2"),
        "gnutls": gnutls("--sni-hostname", NAME),
        "gnutls-no-name": gnutls("--disable-sni", "--alpn=h2", "--alpn=http/1.1"),
        "gnutls-acme-tls-1": gnutls("--sni-hostname", NAME, "--alpn=acme-tls/1"),
        "gnutls-tls1-2": gnutls("--sni-hostname", NAME, "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.2"),
        "gnutls-secure256": gnutls("--sni-hostname", NAME, "--priority=SECURE256:%NO_EXTENSIONS"),
        "wget": Client("wget", wget, ("wget", "-qO-", "-t1", "--no-check-certificate", "https://localhost:{port}/")),
        "git": Client(
            "git",
            git,
            ("git", "-c", f"http.curloptResolve={NAME}:{{port}}:127.0.0.1", "ls-remote", f"https://{NAME}:{{port}}/x"),
        ),
        "nss": nss("-a", NAME),
        "nss-tls1-2": nss("-a", NAME, "-V", "tls1.2:tls1.2"),
        "nss-ech-grease": nss("-a", NAME, "-V", "tls1.3:tls1.3", "-i", "128"),
        "rustls": Client(
            "uv",
            rustls,
            (
                "uv",
                "pip",
                "compile",
                "--no-cache",
                "--no-config",
                "--index-url",
                "https://localhost:{port}/",
                "{requirements}",
            ),
        ),
        "node-alpn": node("h2", "http/1.1"),
        "java": java(),
        "java-alpn": java("h2,http/1.1"),
        "python": Client(
            sys.executable,
            f"Python {version_of(sys.executable, '-V')} ssl",
            (sys.executable, "-c", PYTHON_SSL, "{port}"),
        ),
    }
    for profile in ("chrome146", "chrome131_android", "chrome110", "firefox147", "safari2601", "edge101", "tor145"):
        found[profile.replace("_", "-")] = browser(profile)
    return found


def receive_hello(listening: socket.socket) -> bytes:
    """The records of the first handshake message of the next connection."""
    connection, _ = listening.accept()
    with connection, connection.makefile("rb") as stream:
        connection.settimeout(SECONDS)
        taken = message = b""
        while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4]):
            header = stream.read(5)
            if len(header) < 5 or header[0] != 22:
                raise ValueError(f"not a handshake record: {header.hex()}")
            fragment = stream.read(int.from_bytes(header[3:]))
            taken, message = taken + header + fragment, message + fragment
    return taken


def record(name: str, client: Client, scratch: Path) -> str:
    """Writes the vector; says what became of it."""
    program = shutil.which(client.program)
    if program is None:
        return f"skipped: no {client.program}"
    (scratch / "Greet.java").write_text(JAVA)
    (scratch / "requirements.in").write_text("a-package\n")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(SECONDS)
        port = str(listening.getsockname()[1])
        places = {
            "{port}": port,
            "{java}": str(scratch / "Greet.java"),
            "{requirements}": str(scratch / "requirements.in"),
        }
        command = list(client.command)
        for place, value in places.items():
            command = [word.replace(place, value) for word in command]
        environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        running = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=scratch,
            start_new_session=True,
        )
        try:
            stream = receive_hello(listening)
        except (OSError, ValueError) as error:
            return f"failed: {error}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
    vector = vectors.HelloVector(
        name=name,
        source=client.source.strip(),
        expect="ok",
        server_name=None,
        alpn=(),
        versions=(),
        ech=False,
        ja4="",
        comment=client.comment,
        stream=stream,
    )
    reading = oracles.tlslite_reading(vector.message)
    if reading is None:
        return "failed: tlslite-ng does not read it"
    vectors.write(
        vectors.VECTORS / "client_hello" / f"{name}.txt",
        vectors.HelloVector(
            name=name,
            source=vector.source,
            expect=vector.expect,
            server_name=reading.server_name.decode("ascii") if reading.server_name else None,
            alpn=reading.alpn,
            versions=reading.versions,
            ech=reading.ech,
            ja4=oracles.reference_ja4(vector.message),
            comment=vector.comment,
            stream=stream,
        ),
    )
    return f"{len(stream)} bytes"


def main() -> int:
    known = clients()
    wanted = sys.argv[1:] or list(known)
    with tempfile.TemporaryDirectory() as scratch:
        for name in wanted:
            print(f"{name}: {record(name, known[name], Path(scratch))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
