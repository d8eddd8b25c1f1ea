"""What travels inside every student folder. Imports torch and diffusers only."""
