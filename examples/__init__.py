"""Programs that embed a store, as models for your own."""
