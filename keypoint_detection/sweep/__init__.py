"""Sweeps: the trainings of a wandb sweep file on this machine or several, without an account."""
