"""Stores without Raft: LocalStore, a store of its own, and ReadOnlyStore, which reads a running manager's data."""
