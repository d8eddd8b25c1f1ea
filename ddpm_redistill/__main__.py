"""``python -m ddpm_redistill``, and what ``torchrun -m ddpm_redistill`` starts."""

from .cli import main

if __name__ == "__main__":
    main()
