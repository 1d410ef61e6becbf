"""The links between managers: addresses, TLS, connections, and messages as bytes."""
