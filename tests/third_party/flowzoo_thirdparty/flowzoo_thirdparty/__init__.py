"""Somebody else's package: a regularizer, a trace estimator and a table column."""
