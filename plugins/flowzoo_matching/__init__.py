"""Matching: a velocity fitted by regression, without solving its ODE.

Three choices that do not know of each other: a `schedule` says how data and noise are mixed along
the way, a `path` turns a pair of them into places and velocities, a `coupling` says which data
point is paired with which noise. The objective `matching` puts them together; the flow is any
`continuous` one, and its likelihood is computed and judged like everybody's.

Score matching is its sibling: `diffusion` is the velocity that a network of the score makes, the
objective `score` fits that network, and `elbo` is the bound on its likelihood.
"""
