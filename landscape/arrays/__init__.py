"""Arrays and where they lie: pytrees as vectors, sums in chunks, devices."""
