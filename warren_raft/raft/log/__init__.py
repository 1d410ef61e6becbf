"""The durable log: its bytes on the disk, its contents in memory, and the two in step."""
