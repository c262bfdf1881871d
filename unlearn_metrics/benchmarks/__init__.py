"""Data -> lm-eval tasks -> documents."""
