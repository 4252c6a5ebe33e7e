"""Backbones, losses and the detector that they make up."""
