"""Conformance: named checks of components, `flowzoo check` and `flowzoo.testing`.

A check is a function of a `Specimen`, a component with options. `finding` says what is checked by
what, `runner` runs one check, `workers` many at a time. `promises` holds the checks of each kind,
`probes` what they are made of.
"""
