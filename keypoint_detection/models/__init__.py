"""Backbones, losses, and the detector that combines them."""
