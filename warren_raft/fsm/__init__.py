"""The replicated state machine: pure and deterministic, given a write transaction of the store."""
