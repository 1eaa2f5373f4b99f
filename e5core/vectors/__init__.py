"""Similarity, search and compression of vectors. Needs numpy alone."""
