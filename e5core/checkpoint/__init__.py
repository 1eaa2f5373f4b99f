"""A model on disk: found, read once, checked, loaded and saved."""
