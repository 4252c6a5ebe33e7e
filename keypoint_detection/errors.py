"""The one error that means: the input is wrong, not the program."""


class InputError(ValueError):
    """Bad input from the user.

    The text is one line that names the file, the entry and the value, and says what was expected. The command line
    prints it without a traceback and exits with code 2.

    Args:
        message: The text. Of an error in a worker of a data loader, whose message holds its traceback, the last line.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught InputError in DataLoader worker"):
            message = message.rsplit("InputError: ", 1)[-1].strip()
        super().__init__(message)
