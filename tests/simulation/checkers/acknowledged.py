"""Checks: each revision was acknowledged for one request only; and at the end no manager's record of a key is older
than the last acknowledged change of that key, by revision. Not: real time order (linearizability.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from tests.simulation.history import NEVER, Call
from tests.simulation.workload import Workload
from tests.simulation.world import Failure, World
from warren_raft.store import codec
from warren_raft.store.tables import SERVICE
from warren_raft.store.transactions import key_of


class AcknowledgedWrites:
    def finish(self, world: World, workload: Workload) -> None:
        changes: dict[str, list[Call]] = defaultdict(list)
        revisions: dict[int, Call] = {}
        for call in workload.calls:
            if call.kind in ("put", "cas", "delete") and isinstance(call.result, int) and call.returned < NEVER:
                changes[call.key].append(call)
                if call.kind != "delete":
                    self._unique(revisions, call)
        for process in world.members():
            for key, calls in changes.items():
                with process.opened.database.read() as view:
                    record = view.get(SERVICE, key)
                self._last_is_there(process.id, key, record, calls, workload)

    @staticmethod
    def _unique(revisions: dict[int, Call], call: Call) -> None:
        """Two puts with the same revision must be parts of one batch; otherwise one was applied over the other."""
        other = revisions.setdefault(call.result, call)
        if other is not call and other.request != call.request:
            raise Failure(f"revision {call.result} was given to two changes, {other} and {call}")

    @staticmethod
    def survive_in(records: Mapping[bytes, bytes], id_: str, workload: Workload, to_revision: int) -> None:
        """The changes that were acknowledged to callers of `workload`, up to a revision, are in the restored or
        recovered records."""
        changes: dict[str, list[Call]] = defaultdict(list)
        for call in workload.calls:
            if call.kind in ("put", "cas", "delete") and isinstance(call.result, int) and call.result <= to_revision:
                changes[call.key].append(call)
        for key, calls in changes.items():
            AcknowledgedWrites._last_is_there(id_, key, records.get(key_of(key)), calls, workload)

    @staticmethod
    def _last_is_there(id_: str, key: str, record: bytes | None, calls: list[Call], workload: Workload) -> None:
        last = max((call for call in calls if call.kind != "delete"), key=lambda call: call.result, default=None)
        if last is None:
            return
        found = codec.decode(SERVICE, record) if record is not None else None
        if found is not None and found.revision >= last.result:
            if found.revision == last.result and found.image != _value(last):
                raise Failure(f"{id_}: {key} at revision {found.revision} has {found.image}, not {_value(last)}")
            return
        deleted_later = any(
            call.kind == "delete"
            and (call.result is None or not isinstance(call.result, int) or call.result > last.result)
            for call in workload.calls
            if call.key == key
        )
        if found is not None or not deleted_later:
            raise Failure(f"{id_}: acknowledged change of {key} at revision {last.result} is lost; found {found}")


def _value(call: Call) -> str:
    return str(call.argument[1] if call.kind == "cas" else call.argument)
