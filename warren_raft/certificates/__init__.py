"""Keys, certificates and join files, by which managers identify each other on their links."""
