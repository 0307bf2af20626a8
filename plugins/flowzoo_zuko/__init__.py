"""The flows of zuko, as components and as they were trained elsewhere.

`flow.Zuko` is the component, `adopted.Adopted` a zuko flow that exists already, `velocity.FreeForm`
the velocity of a zuko CNF, `library` what is imported of zuko.

References:
    Zuko: Normalizing flows in PyTorch (Rozet et al.), https://github.com/probabilists/zuko
"""
