"""`python -m warren_raft_cli` is `warren-raft`."""

from .main import main

main()
