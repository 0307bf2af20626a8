"""What checks are made of: closed forms to compare with, things to vary, a sequential test."""
