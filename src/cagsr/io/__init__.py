"""Files and terminal: atomic writes, manifests, lock files, shutdown signals, console output.

Import from its modules: `io.atomic_write.write_atomically`, `io.lock.Lock`. Any room may.
"""
