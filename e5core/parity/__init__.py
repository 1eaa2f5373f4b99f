"""A model held against its reference, with tolerances and their reasons."""
