"""Files that are whole or absent, tables of text, and progress bars."""
