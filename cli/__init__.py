"""The command `warren-raft`: one file a family of commands, each loaded only when it is called.

No rule of the store lives here: commands ask warren_raft and print what it says.
Invariant: results go to stdout, everything else to stderr; an error is one line and a documented exit code.
"""
