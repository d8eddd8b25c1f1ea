"""The science, torch only: losses, taps, memory accounting, EMA. Knows no network by name."""
