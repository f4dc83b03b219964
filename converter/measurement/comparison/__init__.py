"""How similar the images of two models are.

PSNR, SSIM, LPIPS, periodic patterns and text accuracy, each beside a second seed of the original.
"""
