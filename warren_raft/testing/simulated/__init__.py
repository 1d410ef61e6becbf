"""The model of a cluster that `simulate` runs programs on."""
