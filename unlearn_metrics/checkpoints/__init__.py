"""What lies on disk: tensors read by rows, adapters, whole checkpoints, pairs of them."""
