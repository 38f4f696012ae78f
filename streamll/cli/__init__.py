"""The command line: `streamll run PROGRAM`, `streamll check URL...`, `streamll tail URL`, `streamll replay URL`, `streamll audit URL`
and `streamll scrub FILE`.

What belongs here: finding the command, and turning every way in which one can end into an exit code and at most one
line of words. What does not: what a command does, which is one file each.

Exit codes: 0 done, 1 it failed, 2 it was called in a wrong way, 130 ended by Ctrl-C; a command may say more in its own
help.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import streamll
from streamll.cli.output import conceal, say
from streamll.cli.program import Interrupted
from streamll.errors import ConfigurationError, StreamllError
from streamll.views.line import neutral

COMMANDS = ("run", "check", "tail", "audit", "replay", "scrub")
"""Each is the module of that name."""

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its words, without the program's name; those of this process when None.

    Returns:
        The exit code.
    """
    try:
        arguments = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as leave:  # argparse has said why
        return leave.code if isinstance(leave.code, int) else FAILED
    except Interrupted:
        raise KeyboardInterrupt from None  # by which the interpreter ends as the program would have
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Nothing more may be written to it, not even by the interpreter at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except ConfigurationError as error:
        say(str(error))
        return MISUSED
    except StreamllError as error:
        say(str(error))
        return FAILED
    except Exception as error:
        if os.environ.get("STREAMLL_DEBUG"):
            raise
        # Its text may hold anything, a password among it.
        say(f"a mistake in streamll: {type(error).__name__}; with STREAMLL_DEBUG=1 it shows where")
        return FAILED


class _Parser(argparse.ArgumentParser):
    """A parser that repeats no credential of what it does not understand."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(MISUSED, f"{self.prog}: error: {neutral(conceal(message))}\n")


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="streamll", description="Watches programs, and looks at where their events go.")
    parser.add_argument("--version", action="version", version=f"streamll {streamll.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Where the command is known, the others need not be imported.
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        command = import_module(f"{__name__}.{name}")
        summary, _, _ = (command.__doc__ or "").partition("\n")
        own = commands.add_parser(
            name,
            help=summary,
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return parser
