"""The entities of a cluster's state: their fields, the requirements for each field, and their form as JSON."""
