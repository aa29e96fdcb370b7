"""The running program: all is bound, then rights are dropped, then it serves until it is told to stop.

start → serve (HUP reloads, USR1 reopens the log) → TERM: stop listening, drain → stopped
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from sniproxy import __version__
from sniproxy.app import build
from sniproxy.app.certificate_json import as_json
from sniproxy.app.control import ControlError, ControlServer, bind_control
from sniproxy.app.resolve import is_loopback, keep_resolved, resolve
from sniproxy.app.rights import drop_privileges, hand_over, make_directories
from sniproxy.config import load
from sniproxy.errors import ConfigError, StartError
from sniproxy.http.admin import Admin
from sniproxy.http.public import Public
from sniproxy.http.server import HttpServer
from sniproxy.model import CertificateCounts, TcpAddress, UnixAddress
from sniproxy.observe.access_log import TcpLog, json_line
from sniproxy.observe.log import EventHandler, LogWriter, StreamSink, open_sink
from sniproxy.observe.metrics import CertificateCollector, Metrics, ReloadCounts
from sniproxy.relay.engine import Engine, Reports
from sniproxy.relay.listener import Listener, bind, has_ipv6

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from sniproxy.app.certificates import Certificates
    from sniproxy.app.control import Step
    from sniproxy.config import Config
    from sniproxy.model import Address, CertificateStatus, ClosedConnection
    from sniproxy.relay.backend import Server

STOPPED, CUT = 0, 3
"""Exit statuses: everything drained; the grace ran out and connections were cut."""

log = logging.getLogger(__name__)


class Proxy:
    """One run of the program with the configuration of one file."""

    def __init__(self, config: Config, path: Path) -> None:
        self._config = config
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._draining = False
        self._reloads = ReloadCounts()
        self._certificate_counts = CertificateCounts()
        self._descriptors = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[Address, Listener] = {}
        self._servers: list[Server] = []  # of earlier configurations
        self._log_settings = config.log  # of the start: a reload does not change them
        self._format: Callable[[ClosedConnection], str] = TcpLog()
        self._log_connections = True
        self._writer: LogWriter
        self._events: LogWriter  # what the program itself has to say; often the same
        self._engine: Engine
        # A reload does not change these.
        self._admin_listen = (config.admin.listen,) if config.admin.listen else ()
        self._public_listen = config.http.listen if config.http else ()
        self._admin: HttpServer | None = None
        self._public: HttpServer | None = None
        self._control_socket = config.admin.control_socket
        self._control: ControlServer | None = None
        self._certificates: Certificates | None = None
        self._responder: UnixAddress | None = None

    async def run(self, errand: Callable[[Certificates], Coroutine[Any, Any, None]] | None = None) -> int:
        """Serves until TERM or INT; returns the exit status. Raises StartError where it cannot begin.

        With an `errand` it serves only until that is done or it is told to stop, lets nobody in but clients of :443 and
        :80, and keeps no certificate by itself.
        """
        if errand is not None:
            self._admin_listen, self._control_socket = (), None
        config = self._config
        self._descriptors = descriptors = build.raise_descriptor_limit(config)
        settings = build.relay_settings(config, descriptors)
        addresses = _listen_addresses(config)
        wanted = (*addresses, *self._admin_listen, *self._public_listen)
        bound = bind_all(wanted)
        control, no_control = None, ""
        try:
            control, no_control = self._bind_control()
            make_directories(config)
            drop_privileges(config.proxy.user, config.proxy.group)
            self._open_log()  # as the user who will have to reopen it
        except StartError:
            if control is not None:
                control.close()
            _give_back(bound, wanted)
            raise
        first, last = len(addresses), len(wanted) - len(self._public_listen)
        listeners, admin, public = bound[:first], bound[first:last], bound[last:]
        if config.certificates:
            await self._start_certificates()
        backends = build.backends(config, responder=self._responder)
        await resolve(server for backend in backends for server in backend.servers)
        reports = Reports(closed=self._on_closed, warning=log.warning, bug=_report_bug)
        self._engine = Engine(
            self._loop,
            settings,
            build.router(config, self._is_pending),
            backends,
            reports,
            validation_pending=self._has_pending,
        )
        await self._serve_http(admin, public)
        if control is not None:
            await self._serve_control(control)
        self._listeners = dict(zip(addresses, listeners, strict=True))
        self._handle_signals()
        self._spawn(keep_resolved(lambda: [s for b in self._engine.backends.values() for s in b.servers]))
        # What has been made so far stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        self._engine.listen(listeners)
        self._say_started(settings.max_connections)
        if no_control:
            log.warning("%s; commands that change something cannot reach this process", no_control)
        try:
            await self._unless_stopped(self._take_certificates(config, keep=errand is None))
            if errand is not None:
                assert self._certificates is not None
                await self._unless_stopped(errand(self._certificates))
            else:
                await self._stop.wait()
            return await self._drain()
        finally:
            await self._close()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for what is to be done first; TERM or INT cut it short."""
        working, stop = self._loop.create_task(work), self._loop.create_task(self._stop.wait())
        try:
            await asyncio.wait((working, stop), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            for task in (working, stop):
                task.cancel()
            await asyncio.gather(working, stop, return_exceptions=True)

    # ------------------------------------------------------------------ start

    def _open_log(self) -> None:
        settings = self._config.log
        try:
            sink = open_sink(settings.target, settings.level)
        except OSError as error:
            raise StartError(f"log.target: cannot open {settings.target}: {error.strerror}") from error
        self._writer = LogWriter(self._loop, sink)
        self._log_connections = settings.level in ("debug", "info")
        as_json = settings.format == "json"
        self._format = json_line if as_json else TcpLog()
        # The lines of a terminal or of a journal are one stream of connections and one of messages.
        own_stream = settings.target in ("stdout", "stderr")
        self._events = LogWriter(self._loop, StreamSink(2)) if own_stream else self._writer
        root = logging.getLogger("sniproxy")
        root.handlers = [EventHandler(self._events, as_json=as_json)]
        root.propagate = False
        root.setLevel(settings.level.upper())

    def _bind_control(self) -> tuple[socket.socket | None, str]:
        """The control socket, or why there is none: only one that was asked for must be."""
        address = self._control_socket
        if address is None:
            return None, ""
        proxy = self._config.proxy
        try:
            control = bind_control(address)
        except StartError as error:
            if "control_socket" in self._config.admin.model_fields_set:
                raise
            self._control_socket = None
            return None, str(error)
        hand_over(address.path, proxy.user, proxy.group)
        return control, ""

    async def _serve_control(self, control: socket.socket) -> None:
        commands = {
            "renew": self._on_renew,
            "certificates": self._on_certificates,
            "reload": self._on_reload,
            "probe": self._on_probe,
            "revoke": self._on_revoke,
            "account": self._on_account,
        }
        self._control = ControlServer(commands, _report_bug)
        await self._control.listen(control)

    async def _start_certificates(self) -> None:
        # Imported on first need: a relay without certificates has no use for 20 MiB of cryptography.
        from sniproxy.app.certificates import Certificates  # noqa: PLC0415

        self._certificates = Certificates(self._certificate_counts, _report_bug, build.validations(self._descriptors))
        self._responder = await self._certificates.start()

    async def _take_certificates(self, config: Config, *, keep: bool = True) -> None:
        if self._certificates is not None:
            from sniproxy.app.certificates import plan  # noqa: PLC0415

            # Port 80 is what it was at the start, and answers http-01 or does not.
            await self._certificates.take(plan(config, http_01=self._public is not None), keep=keep)

    def _is_pending(self, name: str) -> bool:
        return self._certificates is not None and self._certificates.responder.is_pending(name)

    def _has_pending(self) -> bool:
        return self._certificates is not None and self._certificates.responder.has_pending

    def _key_authorization(self, token: str) -> str | None:
        return self._certificates.responder.http_answer(token) if self._certificates is not None else None

    def _statuses(self) -> list[CertificateStatus]:
        return self._certificates.statuses() if self._certificates is not None else []

    async def _serve_http(self, admin: list[Listener], public: list[Listener]) -> None:
        certificates = CertificateCollector(self._statuses, self._certificate_counts)
        metrics = Metrics(self._engine.snapshot, self._reloads, __version__, certificates)
        loopback = all(isinstance(it, TcpAddress) and is_loopback(it.host) for it in self._admin_listen)
        answers = Admin(metrics=metrics.render, not_ready=self._not_ready, loopback=loopback)
        most = build.http_connections(self._descriptors)
        self._admin = HttpServer(answers, _report_bug, most)
        for listener in admin:
            await self._admin.listen(listener.socket)
        if self._config.http is not None:
            redirect = self._config.http.redirect_to_https
            answers80 = Public(redirect_to_https=redirect, key_authorization=self._key_authorization)
            self._public = HttpServer(answers80, _report_bug, most)
            for listener in public:
                await self._public.listen(listener.socket)

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._on_hup()))
        self._loop.add_signal_handler(signal.SIGUSR1, self._reopen_log)
        self._loop.add_signal_handler(
            signal.SIGUSR2, log.warning, "USR2: upgrading in place is not there yet; restart instead"
        )

    def _say_started(self, max_connections: int) -> None:
        config = self._config
        log.info("%s on %s", __version__, ", ".join(map(str, self._listeners)))
        if max_connections < config.proxy.max_connections:
            # Nobody may have asked for the default: then it is no more than a fact.
            asked = "max_connections" in config.proxy.model_fields_set
            log.log(
                logging.WARNING if asked else logging.INFO,
                "max_connections: the limit of open files allows %d of %d; raise LimitNOFILE (ulimit -n)",
                max_connections,
                config.proxy.max_connections,
            )
        for line in _not_there_yet(config):
            log.warning("%s", line)

    def _not_ready(self) -> str:
        if self._draining:
            return "draining"
        return "" if self._engine.listening else "not listening"

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _report_bug(error)

    # ------------------------------------------------------------------ serve

    def _on_closed(self, connection: ClosedConnection) -> None:
        if self._log_connections:
            self._writer.write(self._format(connection))

    def _reopen_log(self) -> None:
        settings = self._log_settings
        try:
            self._writer.replace(open_sink(settings.target, settings.level))
        except OSError as error:
            log.error("USR1: cannot open %s: %s; the old file stays in use", settings.target, error.strerror)  # noqa: TRY400

    async def _on_hup(self) -> None:
        """Takes the file as it is now; where anything in it is wrong, everything stays as it was."""
        try:
            await self._reload()
        except (ConfigError, StartError) as error:
            for line in str(error).splitlines():
                log.error("reload refused: %s", line)  # noqa: TRY400

    async def _reload(self) -> None:
        """Raises ConfigError or StartError where the file is not taken."""
        async with self._reloading:
            try:
                # In a thread: reading a large file takes longer than a connection may be kept waiting.
                await self._take(await asyncio.to_thread(load, self._path))
            except (ConfigError, StartError):
                self._reloads.count(success=False)
                raise
            self._reloads.count(success=True)
            log.info("reloaded %s", self._path)
            # Not waited for: certificates that are being ordered are let come to their end first.
            self._spawn(self._take_certificates(self._config))

    async def _take(self, config: Config) -> None:
        # With those that were taken out earlier and still have connections: back again, they are not idle.
        known = self._servers = [
            *(server for server in self._servers if server.active),
            *(server for backend in self._engine.backends.values() for server in backend.servers),
        ]
        if config.certificates and self._certificates is None:
            await self._start_certificates()
        backends = build.backends(config, known, self._responder)
        await resolve(server for backend in backends for server in backend.servers)
        if self._draining:
            raise StartError("the program is stopping")
        # Nothing is waited for from here on: all of it is taken, or none.
        wanted = _listen_addresses(config)
        added = [address for address in wanted if address not in self._listeners]
        bound = dict(zip(added, bind_all(added), strict=True))
        descriptors = build.raise_descriptor_limit(config)
        router = build.router(config, self._is_pending)
        self._engine.reconfigure(build.relay_settings(config, descriptors), router, backends)
        removed = [address for address in self._listeners if address not in wanted]
        self._engine.unlisten([self._listeners.pop(address) for address in removed])
        _unlink_sockets(removed)
        self._listeners |= bound
        self._engine.listen(bound.values())
        for key in ("admin", "http", "log"):
            if getattr(config, key) != getattr(self._config, key):
                log.warning("reload: changes of [%s] take a restart", key)
        for key in ("user", "group", "workers"):
            if getattr(config.proxy, key) != getattr(self._config.proxy, key):
                log.warning("reload: a change of proxy.%s takes a restart", key)
        self._config = config

    # ------------------------------------------------------------------ asked for

    async def _on_renew(self, request: Mapping[str, Any], step: Step) -> Any:
        if self._certificates is None:
            raise ControlError("the running proxy has no certificates to keep; has its file changed? reload it")
        names = [str(name) for name in request.get("names", ())]
        force, dry_run = bool(request.get("force")), bool(request.get("dry_run"))
        return await self._certificates.renew(names, force=force, dry_run=dry_run, tell=step)

    async def _on_certificates(self, _request: Mapping[str, Any], _step: Step) -> Any:
        return [as_json(status) for status in self._statuses()]

    async def _on_revoke(self, request: Mapping[str, Any], step: Step) -> Any:
        name, reason = request.get("name"), request.get("reason", 0)
        if not (self._certificates is not None and isinstance(name, str) and isinstance(reason, int)):
            raise ControlError("revoking needs certificates, a name, and a reason's number")
        return await self._certificates.revoke(name, reason, tell=step)

    async def _on_account(self, request: Mapping[str, Any], _step: Step) -> Any:
        if self._certificates is None:
            raise ControlError("the running proxy has no certificates, and so no account")
        return await self._certificates.account(roll_over=bool(request.get("roll_over")))

    async def _on_probe(self, request: Mapping[str, Any], _step: Step) -> Any:
        kind, identifier = request.get("type"), request.get("identifier")
        if self._certificates is None or kind not in ("tls-alpn-01", "http-01") or not isinstance(identifier, str):
            raise ControlError("a probe needs certificates, a type (tls-alpn-01 or http-01) and an identifier")
        return self._certificates.probe(kind, identifier)

    async def _on_reload(self, _request: Mapping[str, Any], _step: Step) -> Any:
        await self._reload()
        return str(self._path)

    # ------------------------------------------------------------------ stop

    def _on_stop(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def _drain(self) -> int:
        """Waits for live connections until the grace is over or a second signal comes."""
        self._draining = True
        self._engine.stop_listening()
        # Now, not in the end: a successor may have bound the same path by then.
        _unlink_sockets(self._listeners)
        grace = self._config.proxy.shutdown_grace
        log.info("stopping: %d connections have %g s to end", len(self._engine.live), grace)
        drained = self._loop.create_task(self._engine.drained())
        stop_now = self._loop.create_task(self._stop_now.wait())
        await asyncio.wait((drained, stop_now), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        stop_now.cancel()
        cut = self._engine.cut_all()
        if cut:
            log.warning("stopped: %d connections were cut", cut)
            return CUT
        log.info("stopped")
        return STOPPED

    async def _close(self) -> None:
        self._engine.close()
        if self._control is not None:
            await self._control.close()
            assert self._control_socket is not None
            _unlink_sockets([self._control_socket])
        if self._certificates is not None:
            await self._certificates.close()
        for server, addresses in ((self._admin, self._admin_listen), (self._public, self._public_listen)):
            if server is not None:
                await server.close()
                _unlink_sockets(addresses)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()
        if self._events is not self._writer:
            self._events.close()


def _listen_addresses(config: Config) -> tuple[Address, ...]:
    """Where to listen: as the file says, or, where it says nothing, on what this machine has."""
    wanted = config.proxy.listen
    if "listen" in config.proxy.model_fields_set or has_ipv6():
        return wanted
    return tuple(address for address in wanted if not isinstance(address, TcpAddress) or ":" not in address.host)


def _not_there_yet(config: Config) -> Iterator[str]:
    """What the file asks for that this version does not do."""
    if config.proxy.workers != 1:
        yield "proxy.workers: more than one process is not there yet; this is one"
    for name, backend in config.backends.items():
        if backend.check != "off":
            yield f"backends.{name}.check: health checks are not there yet; a server that refuses is passed over"


def bind_all(addresses: Sequence[Address]) -> list[Listener]:
    """Binds all of the addresses, in order, or none of them. Raises StartError."""
    bound: list[Listener] = []
    try:
        for address in addresses:
            bound.append(bind(address))  # noqa: PERF401  one by one, so that those that stand can be given back
    except StartError:
        _give_back(bound, addresses)
        raise
    return bound


def _give_back(bound: Sequence[Listener], addresses: Sequence[Address]) -> None:
    """Closes the listeners, which are those of the first addresses."""
    for listener in bound:
        listener.close()
    _unlink_sockets(addresses[: len(bound)])


def _unlink_sockets(addresses: Iterable[Address]) -> None:
    """Removes the files of unix sockets that nobody listens on any more."""
    for address in addresses:
        if isinstance(address, UnixAddress) and not address.is_abstract:
            try:
                Path(address.path).unlink()
            except OSError:
                pass  # gone already, or in a directory that only root may change


def _report_bug(error: BaseException) -> None:
    log.error("a bug in sniproxy, please report it", exc_info=error)
