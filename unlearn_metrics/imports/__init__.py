"""Logs that other evaluators left behind, as runs: an importer for each kind of log, and what makes records of it.

An importer is a module with `read(path, benchmark)`, which returns a Log for each checkpoint. No model, no torch.
"""
