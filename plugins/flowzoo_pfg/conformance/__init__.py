"""What discrepancies promise, as checks for `flowzoo check`."""
