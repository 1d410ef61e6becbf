"""The data of a Go Warren, in and out: its database file, and its records as JSON lines.

Nothing here writes to a store: the caller gets the records as entities.
Invariant: incoming data is validated, so that nothing is stored that could not have been written.
"""
