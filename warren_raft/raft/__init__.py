"""Consensus: PySyncObj, and the modules that make it safe. They know no entities and no LMDB; see DESIGN.md here."""
