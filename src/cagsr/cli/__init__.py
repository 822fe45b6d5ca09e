"""The command line `cagsr`: its commands and the options that they share.

Import `cli.main.main`, the entry point; nothing else in the package imports this room.
"""
