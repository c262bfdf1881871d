"""A run on disk: written, read from anyone, scored again."""
