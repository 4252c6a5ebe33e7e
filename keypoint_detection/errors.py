"""The one error that means: the input is wrong, not the program."""


class InputError(ValueError):
    """Bad input from the user.

    The text is one line that names the file, the entry and the value, and says what was expected. The command line
    prints it without a traceback and exits with code 2.
    """
