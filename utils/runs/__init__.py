"""Everything that a run writes: folder, checkpoints, progress and records."""
