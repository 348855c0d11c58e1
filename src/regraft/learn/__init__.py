"""Features, head solvers, the training loop, scoring."""
