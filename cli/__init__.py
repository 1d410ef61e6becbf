"""The command `warren-raft`: one file a family of commands; names no rule of the store, only asks for it."""
