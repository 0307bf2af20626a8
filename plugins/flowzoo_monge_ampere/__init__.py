"""Monge-Ampere flow: along the gradient of a potential that does not change with time.

`potential.MongeAmpere` is the network, with its derivatives in closed form; `official` reads
weights of the published code. The flow is the frame's: `continuous` along the `gradient` of this
potential. `potential: {name: mlp, time: none}` stands in for deeper networks.

References:
    Monge-Ampere Flow for Generative Modeling (Zhang, E & Wang, 2018),
    https://arxiv.org/abs/1809.10188
"""
