"""The companion: control of unlearned checkpoints, before they are scored."""
