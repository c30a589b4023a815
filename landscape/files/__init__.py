"""What is on disk: files that are whole or absent, and the progress of what is being computed."""
