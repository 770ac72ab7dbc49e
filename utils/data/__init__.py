"""From files to token arrays."""
