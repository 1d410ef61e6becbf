"""Clusters of real manager processes on this machine: killed, stopped, paused, wiped, and checked under load."""
