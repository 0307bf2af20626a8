"""What convex potentials and inversions promise, as checks for `flowzoo check`."""
