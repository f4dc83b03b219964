"""Measure how similar the images of two models are.

PSNR, SSIM, LPIPS, periodic patterns and text accuracy, each next to the same figures for a second seed of the original.
"""
