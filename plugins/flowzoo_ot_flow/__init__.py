"""OT-Flow: a potential whose derivatives up to the Hessian come from one set of activations.

`potential.ResNetPotential` is the network, `hessian` its second derivatives in closed form,
`official` reads weights of the published code. The flow is the frame's: `continuous` along the
`gradient` of this potential, with the costs `transport` and `hjb`.

References:
    OT-Flow: Fast and Accurate Continuous Normalizing Flows via Optimal Transport (Onken, Wu Fung,
    Li & Ruthotto, AAAI 2021), https://arxiv.org/abs/2006.00104
"""
