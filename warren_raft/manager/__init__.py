"""ReplicatedStore and its parts: one manager of a cluster."""
