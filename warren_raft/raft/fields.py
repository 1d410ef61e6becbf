"""What a message between managers must hold, looked at before anything reads it: no peer is trusted to be sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from warren_raft.raft.address_book import are_told
from warren_raft.raft.catchup import CHUNK_BYTES
from warren_raft.raft.changes import DONE, PENDING, REFUSED, WAIT
from warren_raft.raft.core import Message
from warren_raft.raft.guard import INDEX_MAX, PeerFault
from warren_raft.raft.health import are_digests
from warren_raft.raft.membership import MEMBERS_MAX
from warren_raft.raft.membership import TEXT_CHARACTERS as MEMBER_CHARACTERS
from warren_raft.raft.reports import is_report
from warren_raft.raft.submit import COMMAND_BYTES_MAX
from warren_raft.wording import quoted

FAULT_CHARACTERS: Final = 500
"""Of what a peer can put into a line for the operator."""
TEXT_CHARACTERS: Final = 4096
"""Of a text in a message: an id, an address, a sentence for an operator."""
SHA256_CHARACTERS: Final = 64
COMMANDS_MAX: Final = 16 * 1024
"""In one message: more than a manager may have out."""


def _is_index(value: Any) -> bool:
    """A term, an index, a round: what the log and a frame can hold."""
    return type(value) is int and 0 <= value <= INDEX_MAX


def _is_number(value: Any) -> bool:
    """An index from 1 on."""
    return _is_index(value) and value > 0


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= TEXT_CHARACTERS


def _is_texts(value: Any) -> bool:
    """Of members, by id."""
    if type(value) is not dict or len(value) > MEMBERS_MAX:
        return False
    return all(type(part) is str and len(part) <= MEMBER_CHARACTERS for item in value.items() for part in item)


def _is_command(value: Any) -> bool:
    return type(value) is bytes and len(value) <= COMMAND_BYTES_MAX


def _is_commands(value: Any) -> bool:
    return type(value) is list and len(value) <= COMMANDS_MAX and all(map(_is_command, value))


def _is_entry(value: Any) -> bool:
    return type(value) is bytes and len(value) > 0


def _is_sha256(value: Any) -> bool:
    return type(value) is str and len(value) == SHA256_CHARACTERS


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_entry_or_none(value: Any) -> bool:
    """(index, term); None where there is none, or from a version that does not tell."""
    return value is None or (type(value) is list and len(value) == 2 and all(map(_is_index, value)))


FIELDS: Final[Mapping[str, Mapping[str, Callable[[Any], bool]]]] = {
    "founding_view": {"view": _is_texts, "configured": _is_texts},
    "founding": {"founding": lambda value: type(value) is bytes},
    "submit": {"commands": _is_commands},
    "submit_large": {"number": _is_number, "heard": _is_index, "command": _is_command, "milliseconds": _is_index},
    "submit_large_cancel": {"number": _is_number},
    "submit_large_end": {"number": _is_number, "again": _is_bool},
    "large_entry": {"number": _is_number, "term": _is_index, "entry": _is_entry},
    "large_entry_held": {"number": _is_number},
    "large_entry_drop": {"number": _is_number},
    "large_entry_cancel": {"number": _is_number},
    "large_entry_refused": {"number": _is_number},
    "pre_vote": dict.fromkeys(("round", "term", "last_log_index", "last_log_term"), _is_index),
    "pre_vote_reply": {"round": _is_index, "granted": _is_bool, "term": _is_index},
    "timeout_now": {"term": _is_index},
    "hand_over": {"term": _is_index, "target": _is_text},
    "nack": {"term": _is_index},
    "request_vote": dict.fromkeys(("term", "last_log_index", "last_log_term"), _is_index),
    "change": {
        "number": _is_index,
        "verb": _is_text,
        "id": _is_text,
        "address": _is_text,
        "incarnation": lambda value: value is None or _is_text(value),
    },
    "addresses": {"said": are_told},
    "health": {
        "digests": are_digests,
        "low": _is_bool,
        "full": _is_bool,
        "report": is_report,
        "commit": _is_entry_or_none,
        "settled": lambda value: value is None or _is_index(value),
    },
    "snapshot_offer": {"sha256": _is_sha256, "index": _is_index, "size": _is_index},
    "snapshot_get": {"sha256": _is_sha256, "offset": _is_index},
    "snapshot_chunk": {
        "sha256": _is_sha256,
        "offset": _is_index,
        "data": lambda value: type(value) is bytes and 0 < len(value) <= CHUNK_BYTES,
        "check": lambda value: type(value) is bytes,
    },
    "snapshot_gone": {"sha256": _is_sha256},
    "snapshot_wanted": {"index": _is_index},
    "change_answer": {"number": _is_index, "state": (DONE, PENDING, WAIT, REFUSED).__contains__, "text": _is_text},
}
"""By type. guard.py checks the core's own messages; a type that nobody knows is dropped (engine.py)."""


def check_fields(message: Message) -> None:
    """Raises PeerFault for a message that no manager sends."""
    for name, is_sound in FIELDS.get(message["type"], {}).items():
        if not is_sound(message.get(name)):
            said = quoted(message.get(name), FAULT_CHARACTERS)
            raise PeerFault(f"{message['type']} with {name} = {said}"[:FAULT_CHARACTERS])
