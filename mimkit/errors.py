"""The one exception for a user's mistake: the command line prints it as one line and exits with 2."""


class UserError(Exception):
    """What is wrong, where, and what would be right, in one line."""
