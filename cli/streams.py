"""stdout and stderr of a command: they are written whole, also if they break off, or nobody reads them any more.

Not here: the exit codes (main.py). Invariant: a line that cannot be written never changes the exit code of a command
whose result is not that line. An output that was written in part is an error, or a reader that has gone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def loss_accepted(stream: TextIO | None) -> Iterator[None]:
    """For a line on this stream that may be lost, because the exit code says the same or the work is done."""
    try:
        yield
    except OSError:
        let_go(stream)


def written_whole(stream: TextIO | None) -> TextIO | None:
    """The stream, or one in its place that writes all bytes or fails.

    With PYTHONUNBUFFERED or `python -u` Python writes to the file itself, and takes a write of a part for the whole: on
    a full disk, or when the reader of a pipe leaves, the rest is lost without an error.
    """
    raw = getattr(stream, "buffer", None)
    if stream is None or not isinstance(raw, io.RawIOBase):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )


def let_go(stream: TextIO | None) -> None:
    """Drops the buffered output of a stream that cannot be written. Without this, Python prints an error when it
    flushes the stream at its end, and takes an exit code of its own."""
    if stream is None:  # it was closed before the process began
        return
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
