"""Sweeps: runs a wandb sweep file on one or several machines, without an account."""
