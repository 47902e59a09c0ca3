"""What a daemon needs round its core: the loop (the only clock), control socket, files, trace points, run-time."""
