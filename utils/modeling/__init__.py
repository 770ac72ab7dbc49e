"""BERT models on packed sequences."""
