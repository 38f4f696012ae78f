"""Hosts: servers that run the program, and start and end its processes in ways of their own.

What belongs here: what such a host must be told of us, and what its operators must be told. What does not: what any Python
program does (leave.py, fork.py). None is imported here: whoever is run by one has it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

log = logging.getLogger("streamll")

_FORKS_ARE_TOLD = frozenset({"lazy", "lazy-apps", "py-call-uwsgi-fork-hooks", "py-call-osafterfork"})


def settle_in(leave: Callable[[], None]) -> None:
    """Have the host call `leave` before it ends a process, and say what in its settings keeps us from working.

    Args:
        leave: Delivers what is buffered. May be called several times.
    """
    try:
        _settle_with_celery(leave)
        _look_at_uwsgi()
    except Exception as error:  # a host of another version is no reason for a sink not to start
        log.debug("what the host is could not be found out", exc_info=error)


def _settle_with_celery(leave: Callable[[], None]) -> None:
    """A process of Celery's prefork pool ends by _exit; this signal is the last that it sends."""
    signals = sys.modules.get("celery.signals")
    if signals is not None:

        def ending(**_: object) -> None:
            leave()

        signals.worker_process_shutdown.connect(ending, weak=False, dispatch_uid="streamll")


def _look_at_uwsgi() -> None:
    """uWSGI forks without telling Python: a worker would then go on as its parent, and without the parent's threads."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    if not uwsgi.has_threads:
        log.warning("uWSGI runs no threads, so nothing is delivered before the end; set enable-threads = true")
    is_parent = uwsgi.worker_id() == 0 and (uwsgi.masterpid() or uwsgi.numproc > 1)
    if is_parent and not _FORKS_ARE_TOLD & uwsgi.opt.keys():
        log.warning(
            "uWSGI is about to fork workers without telling Python, and what they emit cannot be delivered; "
            "set lazy-apps = true, or py-call-uwsgi-fork-hooks = true"
        )
