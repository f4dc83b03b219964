"""Measure what quantization does to a model: to each weight, to what the denoiser computes, and to images.

Ablation and search compare many ways of storing the same weights. What they share is here, so that each weight is
quantized once for each of them, and the original runs once.
"""
