"""One file for each figure, table and theorem of the paper."""
