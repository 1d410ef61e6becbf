"""Programs that act while their manager leads: callbacks, the `lead` whose writes are fenced, and loops."""
