"""Families of networks: how each is recognised, opened, described by its resampling layers and saved."""
