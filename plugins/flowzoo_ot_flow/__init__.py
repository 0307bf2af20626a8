"""OT-Flow: a potential whose derivatives up to the Hessian come from one set of activations.

`potential.ResNetPotential` is the potential and `network` its formulas, `hessian` its second
derivatives in closed form. `fused` computes gradient and Laplacian at once, with a hand-written
derivative, for which `laplacian` has the sweeps over the dimensions and `backwards` the rest.
`official` knows the names of the published code's weights, and `importer` makes a flow of them. The
flow is the frame's: `continuous` along the `gradient` of this potential, with the costs `transport`
and `hjb`.

References:
    OT-Flow: Fast and Accurate Continuous Normalizing Flows via Optimal Transport (Onken, Wu Fung,
    Li & Ruthotto, AAAI 2021), https://arxiv.org/abs/2006.00104
"""
