"""Metrics judged by records of models of which it is known what they know, and by what attacks do to their values."""
