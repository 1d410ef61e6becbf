"""Snapshots: verified copies of the database file, each of which carries its own proof."""
