"""What components of each kind promise: modules of checks, one or more for each kind."""
