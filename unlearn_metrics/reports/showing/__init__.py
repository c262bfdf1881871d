"""One run, to be looked at: texts side by side, plots, a page, a table for a paper."""
