"""Shared code of the scripts, in packages by role."""
