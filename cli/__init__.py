"""The command `warren-raft`: one file a family of commands, each loaded only when it is called.

Not here: rules of the store. Commands call warren_raft and print its answers.
Invariant: results go to stdout, everything else to stderr; an error is one line, with a documented exit code.
"""
