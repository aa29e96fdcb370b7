"""What the demo starts and has to give back: programs, a directory, ports. Nothing outlives this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from sniproxy.errors import SniproxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

VERSION_SECONDS = 15.0

# Debian keeps haproxy in /usr/sbin, which is not in the PATH of ordinary users.
MORE_PATH = "/usr/sbin:/usr/local/sbin:/sbin"
OLDEST_HAPROXY = (2, 2)
"""The first one with fc_pp_authority, fc_pp_unique_id, `http-request return`, and certificates set at run time."""

PACKAGES = {"haproxy": "haproxy", "pebble": "pebble", "pebble-challtestsrv": "pebble"}
"""What the demo runs, and the package of Debian and Ubuntu that has it."""

_WORDS_LINES = 12
_PR_SET_PDEATHSIG = 1


class StepFailed(SniproxyError):
    """A step of the demo did not work.

    `words` are what the programs said, each line with its speaker. `advice` is what to do, where that is not what the
    step has for all its failures.
    """

    def __init__(self, message: str, words: Sequence[str] = (), advice: str = "") -> None:
        super().__init__(message)
        self.words = tuple(words)
        self.advice = advice


class Program:
    """A child process in a session of its own, where no Ctrl-C of the terminal comes; it dies with this process.

    Everything it says is in the file `output`. Lines that match `dull` are nothing to show to anybody. `environment`
    is in addition to ours.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        output: Path,
        *,
        dull: re.Pattern[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.output = output
        self._dull = dull
        with output.open("wb") as stream:
            self._child = subprocess.Popen(  # noqa: S603  what the demo starts is its own choice
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
                preexec_fn=_dying_with(os.getpid()),  # noqa: PLW1509  all of them start before the first thread
            )
        self.pid = self._child.pid

    def words(self) -> list[str]:
        """The last lines it said that are worth showing, each with its name."""
        lines = [line for line in self.lines() if self.is_worth_showing(line)]
        return [f"{self.name}: {line}" for line in lines[-_WORDS_LINES:]]

    def lines(self) -> list[str]:
        """All that it said."""
        return self.output.read_text(errors="replace").splitlines()

    def is_worth_showing(self, line: str) -> bool:
        """Whether a line of its output is one for people."""
        return self._dull is None or self._dull.match(line) is None

    def must_live(self) -> None:
        """Raises StepFailed if it has ended."""
        if (code := self._child.poll()) is not None:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
            words = self.words() or [f"{self.name}: (it said nothing)"]
            raise StepFailed(f"{self.name} {how}", words)

    def wait_until(self, shows: Callable[[], bool], otherwise: str, seconds: float) -> None:
        """Waits until something shows, looking less and less often. Raises StepFailed if it ends, or never does."""
        deadline = time.monotonic() + seconds
        pause = 0.002
        while not shows():
            self.must_live()
            if time.monotonic() > deadline:
                raise StepFailed(f"{otherwise} after {seconds:g} s", self.words())
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def terminate(self) -> None:
        """Asks it to end."""
        self._child.terminate()

    def wait(self, seconds: float) -> int:
        """Waits for its exit status. Raises subprocess.TimeoutExpired."""
        return self._child.wait(seconds)

    def kill(self) -> None:
        """Ends it, whatever it does; does nothing where it has ended."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def _dying_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes the program: the kernel is to kill it should we be killed."""
    prctl = ctypes.CDLL(None).prctl

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was too late
            os._exit(1)

    return ask_kernel


def find_programs() -> dict[str, str]:
    """The paths of PACKAGES' programs, by name. Raises StepFailed, with the line to print, where one is missing."""
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{MORE_PATH}"
    found = {name: where for name in PACKAGES if (where := shutil.which(name, path=path)) is not None}
    missing = [name for name in PACKAGES if name not in found]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[name] for name in missing))
        names = " and ".join(missing)
        raise StepFailed(f"demo: needs {names}, neither in PATH nor in /usr/sbin: apt-get install {packages}")
    return found


def haproxy_version(program: str) -> str:
    """The version of a haproxy. Raises StepFailed where it tells none, or is too old."""
    command = (program, "-v")
    done = subprocess.run(command, capture_output=True, timeout=VERSION_SECONDS, check=False, text=True)  # noqa: S603
    said = done.stdout + done.stderr
    match = re.search(r"version (([0-9]+)\.([0-9]+)\S*)", said)
    if match is None:
        words = [f"haproxy: {line}" for line in said.splitlines()] or ["haproxy: (it said nothing)"]
        raise StepFailed(f"{program} -v tells no version", words)
    if (int(match[2]), int(match[3])) < OLDEST_HAPROXY:
        oldest = ".".join(map(str, OLDEST_HAPROXY))
        raise StepFailed(f"{program} is {match[1]}; the demo needs {oldest} or later", said.splitlines()[:1])
    return match[1].partition("-")[0]


@contextlib.contextmanager
def removed(directory: Path) -> Iterator[None]:
    """Removes the directory in the end. Another process waits for ours to end, and does it if we are killed."""
    remove = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"
    with subprocess.Popen(  # noqa: S603  Python and the line above
        (sys.executable, "-I", "-S", "-c", remove, str(directory)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ):
        try:
            yield
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A free port of 127.0.0.1, for TCP, that nobody else is given.

    It is bound here but not listened on, so a program that binds it with SO_REUSEADDR, as servers do, gets it all the
    same; nobody who asks the kernel for any free port does.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Holds signals that would end the process off from what gives things back; that takes no time to speak of."""
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def usable_for_sockets(directory: str) -> str:
    """The directory; or /tmp, where the path of a socket in it would be too long, or need quoting for HAProxy."""
    return directory if re.fullmatch(r"[A-Za-z0-9/._-]{1,40}", directory) else "/tmp"  # noqa: S108  a place for mkdtemp
