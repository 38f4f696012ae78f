"""Whether a frame that stands still waits: for a lock, for time to pass, for what comes from outside.

What belongs here: that judgement, from the code and the instruction alone. What does not: whose frame it is.

A thread that waits in a function written in C is at the instruction that calls it, and the name that was called tells
what for. It is one judgement for each place in the program, so that it is worth remembering.
"""

from __future__ import annotations

import dis
from collections import deque
from types import CodeType

WAITS = frozenset(
    "acquire sleep select _select poll _poll epoll kqueue control wait waitpid wait3 wait4 waitid sigwait sigwaitinfo "
    "sigtimedwait pause accept _accept recv recv_into recvfrom recvfrom_into recvmsg recvmsg_into do_handshake".split()
)
"""What is called to wait. Not what may as well work for long, or does mostly: read, get, join, connect, send."""

_ENTERING = frozenset({"SETUP_WITH", "BEFORE_WITH"})
"""`with lock:` waits here: entering a block written in Python has a frame of its own."""

_STANDING = frozenset(name for name in dis.opmap if name.startswith("CALL")) | _ENTERING

_SILENT = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "KW_NAMES", "PUSH_NULL"})
_NAMING = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF"})

FARTHEST = 16_384
"""Bytes of code that are looked through at most, which takes some milliseconds, once."""

_LONGEST_CALL = 64
"""Instructions between a function's name and its call."""


def waits(code: CodeType, instruction: int) -> bool:
    """Whether code at an instruction calls something that waits.

    Args:
        code: What the frame runs.
        instruction: Where it is: `f_lasti`.
    """
    words = code.co_code
    if not 0 <= instruction < min(len(words), FARTHEST) or dis.opname[words[instruction]] not in _STANDING:
        return False
    if code.co_name == "_worker" and code.co_filename.endswith("thread.py") and "work_queue" in code.co_varnames:
        return True  # concurrent.futures: an idle worker, in the `get` of a queue written in C
    before: deque[dis.Instruction] = deque(maxlen=_LONGEST_CALL)
    for each in dis.get_instructions(code):
        if each.offset > instruction:
            break
        if each.opname not in _SILENT:
            before.append(each)
    if before[-1].opname in _ENTERING:
        return True
    return _called(list(before)) in WAITS


def _called(instructions: list[dis.Instruction]) -> str:
    """The name that the last instruction calls; empty when it calls nothing, or when that cannot be told."""
    call = instructions.pop()
    if call.opname in ("CALL_FUNCTION_EX", "CALL_INTRINSIC_1", "CALL_INTRINSIC_2"):
        return ""
    wanted = call.arg or 0
    if call.opname in ("CALL_KW", "CALL_FUNCTION_KW"):
        wanted += 1  # the names of the arguments are on the stack too
    while wanted > 0 and instructions:
        each = instructions.pop()
        if each.opcode in dis.hasjrel or each.opcode in dis.hasjabs:
            return ""  # an argument with a condition in it
        wanted -= dis.stack_effect(each.opcode, each.arg, jump=False)
    if wanted or not instructions or instructions[-1].opname not in _NAMING:
        return ""
    return str(instructions[-1].argval)
