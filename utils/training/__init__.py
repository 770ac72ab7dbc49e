"""Optimizer steps: trainer, optimizer, data order and processes."""
