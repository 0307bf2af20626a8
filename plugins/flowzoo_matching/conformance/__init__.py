"""What paths, schedules and couplings promise, as checks for `flowzoo check`."""
