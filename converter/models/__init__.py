"""Knowledge of models: Lens itself, classes of diffusers and transformers, families of tensors.

Modules that planning and header checks need import torch only when they are called.
"""
