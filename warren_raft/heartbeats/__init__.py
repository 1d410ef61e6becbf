"""Nodes that beat: their heartbeats decide whether they are ready or down."""
