"""From a source to a release: recipe, plan, kernels, streamed execution, release folder.

``convert`` runs all of it; ``preview`` says from headers alone what it would give.
"""
