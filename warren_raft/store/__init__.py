"""The store: tables and indexes on LMDB, and the operations on them. This package knows nothing of Raft."""
