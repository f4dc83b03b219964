"""From a source to a release: recipe, plan, kernels, streamed execution, release folder.

``convert`` runs all of it; ``preview`` computes the result in advance from headers alone.
"""
