"""Families of networks: how each is built, measured and changed."""
