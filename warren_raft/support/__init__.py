"""Threads, waiting, log lines and other tools that every package uses. They know nothing of the rest."""
