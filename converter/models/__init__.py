"""What is known of models: Lens itself, classes of diffusers and transformers, families of tensors.

``lens.layout``, ``lens.resolutions``, ``config`` and ``families`` import no torch, so that header checks start quickly.
"""
