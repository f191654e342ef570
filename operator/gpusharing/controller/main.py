"""The operator's process: `gpusharing-operator`.

One process in the cluster leads, and others stand by. Nothing here imports what only a leader needs (`leading.py`): a
standby would pay for it with memory.
"""

import asyncio
import logging
import os
import signal
import sys
from asyncio import sslproto
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from importlib import import_module
from typing import Any, Literal

import structlog

from gpusharing.controller.role import ProcessMetrics, Role, probe_pages
from gpusharing.controller.settings import PREFIX, Settings, SettingsError, from_environment
from gpusharing.kube.clock import SteadyClock
from gpusharing.kube.errors import Unauthorized
from gpusharing.kube.http import HttpClient
from gpusharing.kube.lease import LeaderLease, Timing, new_identity
from gpusharing.kube.login import environment_login
from gpusharing.kube.pageserver import Page, PageServer, metrics_page

FAULT = 1
"""Exit status for a setting that is not valid, a port that is in use, or an internal error."""
NO_LOGIN = 2
"""Exit status if there are no valid credentials."""
LOST_LEASE = 7
"""Exit status of a process that lost the Lease."""

log = structlog.get_logger()


def main() -> None:
    """Run the operator with the settings of the environment, and exit with `serve`'s status, or FAULT."""
    try:
        settings = from_environment(os.environ)
    except SettingsError as error:
        sys.exit(f"gpusharing-operator: {error}")
    configure_logs(settings)
    # Read 64 KiB at once from TLS instead of 256 KiB. asyncio allocates a buffer of that size each time it checks for
    # more data, twice for each answer, and above MALLOC_MMAP_THRESHOLD_ that is a separate mapping each time, which
    # costs a fifth of the CPU time of a call.
    sslproto.SSLProtocol.max_size = 64 * 1024
    try:
        status = asyncio.run(serve(settings, os.environ))
    except Exception:
        log.exception("the operator is stopping because of an internal error")
        status = FAULT
    sys.exit(status)


def configure_logs(settings: Settings) -> None:
    level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if settings.log_format == "console"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, structlog.processors.format_exc_info],
        )
    )
    root = logging.getLogger()
    root.handlers, root.level = [handler], max(level, logging.WARNING)
    # kopf would warn that it cannot handle signals in its thread, which is intended.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


async def serve(settings: Settings, environment: Mapping[str, str]) -> int:
    """Run the operator until a signal, and return the exit status; a lost Lease ends the process without returning."""
    login, metrics = environment_login(environment), ProcessMetrics()
    try:
        await login.access()
    except Unauthorized as error:
        log.error("cannot log in to the API server", error=str(error))
        return NO_LOGIN
    identity = new_identity()
    clock = SteadyClock()
    # The Lease has a session of its own, with its own connections and slots, so that a renewal never waits for other
    # calls.
    async with HttpClient(login, on_call=metrics.called, clock=clock) as own:
        timing = Timing(settings.lease_duration, settings.renew_deadline, settings.retry_period)
        where = settings.namespace, settings.lease_name
        role = Role(LeaderLease(own, *where, identity, on_lost=_lost, timing=timing, now=clock))
        metrics.leader.set_function(lambda: float(role.lease.is_leader))

        async def work() -> None:
            await role.wait_to_lead(settings.retry_period)
            # In a thread, because the Lease is renewed meanwhile.
            leading = await asyncio.to_thread(import_module, "gpusharing.controller.leading")
            await leading.lead(role, login, settings, metrics, clock)

        with ExitStack() as servers:
            if not (
                _listen(servers, probe_pages(role), settings, "probe_port")
                and _listen(servers, {"/metrics": metrics_page(metrics.registry)}, settings, "metrics_port")
            ):
                return FAULT
            log.info("started", identity=identity, namespace=settings.namespace)
            await _until_signalled(role.lease, work())
    log.info("stopped")
    return 0


def _lost() -> None:
    # Nothing may be written any more, not even on the way out (cilium#42920).
    log.error("the Lease was lost; the operator is stopping now, because another process may be the leader")
    os._exit(LOST_LEASE)


async def _until_signalled(lease: LeaderLease, work: Coroutine[Any, Any, None]) -> None:
    stop = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop.set)
    working, contending = asyncio.create_task(work), asyncio.create_task(lease.run())
    stopped: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([working, contending, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, stopped):
            task.cancel()
        await asyncio.wait([working, stopped])
        contending.cancel()
        await asyncio.wait([contending])
    for task in done - {stopped}:
        task.result()


def _listen(
    stack: ExitStack, pages: Mapping[str, Page], settings: Settings, name: Literal["probe_port", "metrics_port"]
) -> bool:
    """Serve the pages at the port of this setting until the stack is closed; False if that fails."""
    if port := getattr(settings, name):
        try:
            server = PageServer((settings.listen, port), pages)
        except OSError as error:
            variable = f"{PREFIX}{name.upper()}"
            log.error("cannot listen on a port", variable=variable, port=port, error=str(error))
            return False
        server.start()
        stack.callback(server.stop)
    return True


if __name__ == "__main__":
    main()
