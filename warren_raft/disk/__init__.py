"""Files and directories: names, owners, durability, and what to do when a resource runs short."""
