"""The one exception for a person's mistake: one line that says what, where and what to do."""


class UserError(ValueError):
    """A mistake in the input. The command line prints its one line and exits with code 2."""
