"""One branch on one example, traced, staged on a plane, and run for all branches and examples."""
