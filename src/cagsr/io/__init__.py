"""Files and terminal: atomic writes, manifests, lock files, shutdown, console output; any room may import it."""
