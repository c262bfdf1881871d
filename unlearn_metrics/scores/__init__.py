"""Values of documents -> scores with intervals."""
