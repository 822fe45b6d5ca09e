"""Files and terminal: atomic writes, manifests, lock files, shutdown signals, console output; any room may import it.
"""
