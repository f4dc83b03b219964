"""LoRA adapters that a conversion adds to the weights: reading them, what their names mean, and the new weights.

The reference is diffusers: load in float32, ``fuse_lora`` for each adapter in the given order.
"""
