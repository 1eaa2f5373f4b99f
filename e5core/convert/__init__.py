"""To and from other layouts of weights."""
