"""A small container orchestrator whose managers embed a ReplicatedStore. Begin with its README.md."""
