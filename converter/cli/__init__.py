"""One module a command: parse options, call the library, render the result.

Modules are imported when their command is called.
"""
