"""Samples, distances, and the report that lays student and teacher side by side."""
