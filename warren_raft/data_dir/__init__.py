"""The data directory of a manager: opening it, its last start, and its description while the manager is stopped."""
