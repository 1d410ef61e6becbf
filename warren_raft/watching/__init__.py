"""Watches: the changes of the state, read from its history and given to the programs that wait for them (DESIGN.md)."""
