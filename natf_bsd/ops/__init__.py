"""What a daemon needs round its core: the loop (the only clock), the control socket, the journal, trace points,
process run-time."""
