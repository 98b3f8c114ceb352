"""What the user can put right."""


class UserError(Exception):
    """Its text is the one line that the user sees."""
