"""A Go Warren's data, in and out: its database file, and its records as JSON lines.

Nothing here writes to a store: what is read is handed to the caller as entities.
Invariant: what comes in is validated, so that nothing can be stored that could not have been written.
"""
