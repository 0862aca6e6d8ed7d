"""The process that serves: uvicorn with bounds, an address, a token, a browser."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
import webbrowser

import uvicorn

from kyomei.errors import RunError
from kyomei.signals import Stop
from kyomei.views.server.app import app_for
from kyomei.views.server.explorer import Explorer, Options
from kyomei.views.server.guard import MOST_AT_ONCE

KEEP_ALIVE_SECONDS = 15
LONGEST_HEAD = 16_384
"""Bytes of a request's first lines."""
SECONDS_TO_CLOSE = 5.0
_TRIED_PORTS = 20


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def listening(host: str, port: int | None) -> socket.socket:
    """A socket on an address.

    Args:
        host: a name or an address.
        port: none: the first free one from 8321 on; 0: any free one.

    Raises:
        RunError: there is no such address here, or the port is taken.
    """
    tried = range(8321, 8321 + _TRIED_PORTS) if port is None else [port]
    for number in tried:
        try:
            family = socket.AF_INET6 if _is_v6(host) else socket.AF_INET
            return socket.create_server((host, number), family=family, backlog=1024)
        except OSError as error:
            if number == tried[-1]:
                raise RunError(f"a free address {host}:{number}", str(error), "choose another with --host or --port") from error
    raise AssertionError


def address_of(options: Options) -> str:
    """What to type into a browser."""
    host = "localhost" if options.host in ("0.0.0.0", "::") else options.host
    return f"http://{f'[{host}]' if ':' in host else host}:{options.port}/"


def exposed(options: Options) -> str:
    """What an address that others reach gives away."""
    may = "" if options.read_only else " They may also write labels, and let this machine run the model."
    return (
        f"Whoever reaches {options.host}:{options.port} and has the token sees the texts, features and labels of this run, "
        f"and the names of files.{may} Nothing is encrypted on the way."
    )


def serve(explorer: Explorer, options: Options, bound: socket.socket, *, browser: bool) -> None:
    """Serve until a signal comes.

    Args:
        explorer: what is shown.
        options: how; the port is that of `bound`.
        bound: what is listened on.
        browser: open one.

    Raises:
        RunError: the server stopped by itself.
    """
    app = app_for(explorer, options)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=2 * MOST_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=LONGEST_HEAD,
        http="h11",
        ws="none",
    )
    server = uvicorn.Server(config)
    failed: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            server.run(sockets=[bound])
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    # In a thread of its own, so that a signal reaches the thread that all of Kyomei hears signals in. It is waited for by an
    # event: a signal during Thread.join makes Python take the thread for one that has ended.
    threading.Thread(target=run, name="server", daemon=True).start()
    if browser:
        opener = threading.Timer(0.5, webbrowser.open, (address_of(options),))
        opener.daemon = True
        opener.start()
    try:
        ended.wait()
    except (Stop, KeyboardInterrupt):
        server.should_exit = True
        ended.wait(SECONDS_TO_CLOSE)
    if failed:
        raise RunError("a server that runs", f"{type(failed[0]).__name__}: {failed[0]}", "see the terminal") from failed[0]


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
