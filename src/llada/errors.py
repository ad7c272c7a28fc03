"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Bad input, described in one sentence that names the problem and the remedy.

    Library code raises it; the command line prints its message and exits with code 2, without a traceback.
    """
