"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input, config or environment; the message names the file, line or key and says what to do.

    The command-line programs print it as one line and exit with status 2, without a traceback.
    """
