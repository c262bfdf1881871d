"""Records -> tables, comparisons, pages, pictures."""
