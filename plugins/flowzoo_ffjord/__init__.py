"""FFJORD: free-form velocities, whose layers see time, and the batch normalisation between blocks.

`velocity.ODENet` is the network, `layers` the ways in which a linear layer depends on time,
`activations` what stands between them, `jacobian` their closed-form Jacobian, `batchnorm` the
moving batch normalisation, `regularizers` the running costs of the published codes of FFJORD and
RNODE, `official` reads weights of FFJORD's.

References:
    FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl,
    Chen, Bettencourt, Sutskever & Duvenaud, ICLR 2019), https://arxiv.org/abs/1810.01367
"""
