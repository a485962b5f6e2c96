"""The one exception type for input that a user can mend."""


class InputError(ValueError):
    """Input, option or file that cannot be used; the message says what to do.

    A ``ValueError``, so existing ``except ValueError`` code keeps working. The command line
    shows its message alone; any other exception is a defect and keeps its traceback.
    """
