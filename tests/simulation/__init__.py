"""A deterministic cluster: real engines, logs and state machines of several managers in one thread, on a virtual clock,
network and disk, everything random drawn from one seed. `python -m tests.simulation --help`.
"""
