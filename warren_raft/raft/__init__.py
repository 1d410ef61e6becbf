"""Consensus: PySyncObj and what makes it safe. Knows nothing of entities or LMDB; see DESIGN.md beside this file."""
