"""Parts that every long command needs: a command line, whole files, work shared among processes, progress."""
