"""What a store is: tables and indexes on LMDB, and the operations on them. Knows nothing of Raft."""
