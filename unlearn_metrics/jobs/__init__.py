"""The only room that uses both models and records."""
