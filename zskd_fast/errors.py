"""The error class for input that cannot be used."""


class InputError(ValueError):
    """Input that cannot be used. The message is one sentence: what was got, what was wanted and what to do."""
