"""What happens to texts before they are ids, and to ids before they are packed."""
