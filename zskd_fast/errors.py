"""The one error class that the package raises for what a user gave it."""


class InputError(ValueError):
    """Something a user gave cannot be used; the message is one sentence that names what was got and wanted."""
