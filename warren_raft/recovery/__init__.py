"""New data directories from snapshots or from a lost cluster: `snapshot restore` and `recover`."""
