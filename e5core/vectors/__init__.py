"""What one does with vectors: similarity, search, compression. Needs numpy alone."""
