"""Conformance: named checks of components, `flowzoo check` and `flowzoo.testing`.

A module of checks holds functions decorated with `check.check`, each of which gets a `Specimen`.
`finding` says what is checked by what, `runner` runs one check, `workers` many at a time.
"""
