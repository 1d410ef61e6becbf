"""An exception, or a call, between any two instructions of a caller's thread, like Ctrl-C, an alarm for a time limit or
a signal handler. Python's tracing gives control before each instruction; nothing here depends on the time.

Python lets signals in only after some instructions: calls of functions, jumps back, the beginning of a function, and
not between a `with` and the lock that it takes. In our own code this module interrupts at each instruction all the
same, so the promise does not depend on a release of Python. In the standard library, which relies on Python's rule, it
interrupts only where Python does.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any, TypeVar

T = TypeVar("T")

OURS, TESTS = "/warren_raft/", "/tests/"
PURE = (
    "/model/entities.py",
    "/model/forms.py",
    "/model/json_form.py",
    "/model/validation.py",
    "/store/codec.py",
    "/store/decoding.py",
    "/store/encoding.py",
    "/store/leading.py",
)
"""Files that touch only the caller's own values: thousands of instructions at which an interruption shows nothing."""
SWALLOWS = (
    "/_weakrefset.py",
    "/weakref.py",
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
    "/hypothesis/internal/conjecture/junkdrawer.py",
)
"""Files in which Python drops an exception with a line on stderr, or has a lock for each module; like `__del__`. The
last one has hypothesis's callback of the garbage collector, which runs at any moment once another test has used
hypothesis."""
LETS_SIGNALS_IN = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")
"""The names of the instructions after which Python looks for signals begin with these."""


class Interrupted(BaseException):
    """In the place of a KeyboardInterrupt."""


def interrupt() -> None:
    raise Interrupted


class At:
    """Calls `action` at place number `number` of the thread while `run` runs.

    `real`: also in our own code, only at places where Python itself would let a signal in.
    """

    def __init__(self, number: int, action: Callable[[], object], *, real: bool = False) -> None:
        self._number = number
        self._action = action
        self._real = real
        self.seen = 0
        """Places so far. If it is below `number` at the end, the call had fewer places."""
        self.where = ""

    def run(self, call: Callable[[], T]) -> T:
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 gives no instructions if no frame asked for them before
        sys.settrace(self._called)
        try:
            return call()
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename.endswith(PURE) or TESTS in code.co_filename or _is_swallowed(frame):
            return None
        everywhere = not self._real and OURS in code.co_filename
        places = frozenset() if everywhere else _places_of(code)
        is_place = everywhere or frame.f_lasti in places

        is_closed = False

        def stepped(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal is_place, is_closed
            if event == "exception":
                is_place = False  # the next instruction is the interpreter's own step into a handler
                # Nobody uses this generator any more. From here on Python drops exceptions, as in `__del__`.
                is_closed = is_closed or argument[0] is GeneratorExit
            elif event == "opcode":
                if is_place:
                    self._reached(frame)
                is_place = not is_closed and (everywhere or frame.f_lasti in places)
            return stepped

        frame.f_trace = stepped  # before the next line: Python 3.13 looks at it
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return stepped

    def _reached(self, frame: FrameType) -> None:
        self.seen += 1
        if self.seen == self._number:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
            sys.settrace(None)  # the rest of the call needs no steps; an exception of the action would end them too
            self._action()


def _is_swallowed(frame: FrameType | None) -> bool:
    """Whether the frame runs in code that drops exceptions, such as a finalizer."""
    while frame is not None and frame.f_code is not At.run.__code__:
        if frame.f_code.co_filename.endswith(SWALLOWS) or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


_known: dict[int, tuple[CodeType, frozenset[int]]] = {}
"""By the id of the code, which stays in use here: the hash of a code object takes longer than a step."""


def _places_of(code: CodeType) -> frozenset[int]:
    found = _known.get(id(code))
    if found is None:
        found = _known[id(code)] = (code, _places(code))
    return found[1]


def _places(code: CodeType) -> frozenset[int]:
    """The offsets of the instructions that let signals in. Python raises the handler's exception inside the
    instruction; tracing can raise it only at the next one. So an instruction at the end of a `with` or `try` block is
    left out: its exception would pass the block by, and leave a lock taken that Python would release."""
    instructions = list(dis.get_instructions(code))
    blocks = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]

    def handler(offset: int) -> int | None:
        return next((each.target for each in blocks if each.start <= offset < each.end), None)

    return frozenset(
        each.offset
        for each, following in pairwise(instructions)
        if each.opname.startswith(LETS_SIGNALS_IN) and handler(each.offset) == handler(following.offset)
    )


def _comes_of_it(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def interrupted(at: At, call: Callable[[], object]) -> bool:
    """Run the call. Returns whether the interruption came out of it."""
    try:
        at.run(call)
    except BaseException as error:
        if not _comes_of_it(error):
            error.add_note(f"interrupted at place {at.seen}, {at.where}")
            raise
        return True
    return False


def sweep(call: Callable[[], object], action: Callable[[], object], *, step: int = 1, real: bool = False) -> list[str]:
    """Run `call` again and again, with `action` one place later each time, until there are no more places.

    Returns the places of the action. Errors of `call` are raised with a note of the place, except for Interrupted and
    its consequences. (The standard library's `Condition.wait` raises a RuntimeError: it has lost its lock.)
    """
    places: list[str] = []
    number = 1
    while True:
        at = At(number, action, real=real)
        interrupted(at, call)
        if at.seen < number:
            return places
        places.append(at.where)
        number += step
