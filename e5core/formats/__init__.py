"""Bytes to data and back: safetensors, SentencePiece, ONNX, torch pickles. Knows no model."""
