"""Promise: of one thread, either large writes or others are on their way; they set out in order, and none is left."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from warren_raft.raft.thread_order import ThreadOrder


@dataclass(eq=False)
class Write:
    number: int
    thread: int
    is_large: bool
    is_held: bool = False


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40), st.data())
def test_whatever_is_mixed_and_however_it_ends(kinds: list[tuple[int, bool]], data: st.DataObject) -> None:
    order: ThreadOrder[Write] = ThreadOrder()
    waiting = [Write(number, thread, is_large) for number, (thread, is_large) in enumerate(kinds)]
    out: list[Write] = []
    held: list[Write] = []
    set_out: dict[int, list[int]] = defaultdict(list)

    def sets_out(write: Write) -> None:
        assert not write.is_held
        out.append(write)
        set_out[write.thread].append(write.number)
        if write.thread:
            assert len({each.is_large for each in out if each.thread == write.thread}) == 1

    ended_while_held = set()
    while waiting or out or held:
        step = data.draw(st.sampled_from([s for s, there in (("new", waiting), ("end", out), ("late", held)) if there]))
        if step == "new":
            write = waiting.pop(0)
            if order.admit(write, [*out, *held, write]):
                sets_out(write)
            else:
                held.append(write)
            continue
        write = data.draw(st.sampled_from(out if step == "end" else held))
        (out if step == "end" else held).remove(write)
        if step == "late":
            ended_while_held.add(write.number)
        for released in order.ended(write):
            held.remove(released)
            sets_out(released)
    for thread, numbers in set_out.items():
        assert numbers == sorted(numbers), thread
    assert {n for numbers in set_out.values() for n in numbers} == set(range(len(kinds))) - ended_while_held
    assert not order.threads
