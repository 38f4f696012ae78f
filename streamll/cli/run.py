"""Run a Python program and watch it: what it spends its time on, its memory, and what watching it cost.

The program is not changed: it gets its own arguments, it is `__main__`, and its exit status, its signals and its tracebacks are
its own. At its end a summary goes to the standard error. Events go to the sinks named here, or in STREAMLL_SINKS; without any the
summary is all there is.

  streamll run --profile --memory app.py --port 8000
  streamll run --sink redis://localhost:6379/0?stream=app --trace 'shop.*' -m shop.worker

A child that the program forks is watched too; a new interpreter that it starts is not. SIGTERM and SIGHUP, where the
program does not handle them, first deliver what is buffered. os._exit and SIGKILL leave no summary.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from streamll.cli.output import say
from streamll.cli.program import Interrupted, Program, find_module, find_script
from streamll.errors import ConfigurationError
from streamll.monitoring import Monitor, monitor
from streamll.runtime.leave import call_at_leave
from streamll.runtime.signals import stop_on_signal
from streamll.views.run_report import format_run

RUN_MEMORY = {"interval": 0.1, "warmup": 1.0, "leak_after": 60.0}
"""A program that is run to be looked at may live for seconds: memory is read more often, and judged earlier."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.usage = "streamll run [options] (SCRIPT | -m MODULE) [arguments of the program ...]"
    parser.add_argument("--sink", action="append", metavar="URL", help="where events go; may be given several times")
    parser.add_argument("--profile", action="store_true", help="sample stacks: which code takes the time")
    parser.add_argument("--memory", action="store_true", help="read memory, and judge whether it leaks")
    parser.add_argument(
        "--trace",
        action="append",
        default=[],
        metavar="PATTERN",
        help="make spans of these functions: 'pkg.*', '!pkg.internal.*' leaves some out; may be given several times",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the whole report there, as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no summary")
    parser.add_argument(
        "--overhead-target",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="the share of one processor that watching may take (0.02)",
    )
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, as python -m does")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="a script, a folder or a zip file with __main__.py")


def run(arguments: argparse.Namespace) -> int:
    """Run the program; returns never: its end is the program's."""
    words: list[str] = arguments.module or arguments.program
    if not words:
        raise ConfigurationError("say what to run: streamll run app.py, or streamll run -m package")
    if arguments.output is not None and not arguments.output.absolute().parent.is_dir():
        raise ConfigurationError(f"there is no folder for {str(arguments.output)!r}")
    find = find_module if arguments.module else find_script
    raise SystemExit(_run(arguments, lambda: find(words[0], words[1:])) or 0)


def _run(arguments: argparse.Namespace, find: Callable[[], Program]) -> Any:
    try:
        program = find()
    except ConfigurationError:
        raise
    except Exception as error:  # the code of the program, or of a package around it
        _show(error, _foreign_part(error.__traceback__))
        return 1
    watch = monitor(
        arguments.sink,
        profile=arguments.profile,
        memory=arguments.memory and RUN_MEMORY,
        trace=arguments.trace,
        overhead_target=arguments.overhead_target,
    )
    if watch.tracing is not None:
        watch.tracing.expect(program.code)
    end = _End(watch, program, arguments)
    call_at_leave(end.sum_up, drained=True)
    stop_on_signal(signal.SIGTERM, *[getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name)])
    try:
        program.run()
        end.status = None
    except SystemExit as leave:
        end.status = leave.code
        if leave.code is not None and not isinstance(leave.code, int):
            print(leave.code, file=sys.stderr)
            end.status = 1
    except KeyboardInterrupt as error:
        end.status = "interrupted"
        _show(error, program.own_traceback(error))
        sys.excepthook = lambda *_: None  # it has been shown
        raise Interrupted from None
    except BaseException as error:
        end.status = 1
        _show(error, program.own_traceback(error))
    return end.status


def _show(error: BaseException, traceback: TracebackType | None) -> None:
    """Have an error shown as the interpreter would: by the hook that the program may have put there."""
    error.__traceback__ = traceback
    sys.excepthook(type(error), error, traceback)


def _foreign_part(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without its first frames that are ours or the import system's."""
    ours = str(Path(__file__).parent)
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith((ours, "<frozen importlib")):
        traceback = traceback.tb_next
    return traceback


class _End:
    """The end of the program: once its threads have ended, its exit functions have run, and the sinks are drained."""

    def __init__(self, watch: Monitor, program: Program, arguments: argparse.Namespace) -> None:
        self._watch = watch
        self._program = program
        self._output: Path | None = None if arguments.output is None else arguments.output.absolute()
        self._quiet: bool = arguments.quiet
        self._pid = os.getpid()
        self.status: Any = "signal"  # unless the main code ends

    def sum_up(self) -> None:
        """Print the summary and write the report; a forked child has none."""
        if os.getpid() != self._pid:
            return
        report = {"program": self._program.name, "status": self.status, **self._watch.report()}
        if not self._quiet:
            sys.stderr.write(f"{format_run(report)}\n")
            sys.stderr.flush()
        if self._output is not None:
            try:
                _write(self._output, report)
            except OSError as error:
                say(f"cannot write the report to {str(self._output)!r}: {error.strerror or error}")


def _write(output: Path, report: dict[str, Any]) -> None:
    """Write all of it or nothing."""
    part = output.with_name(f"{output.name}.part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part.replace(output)
