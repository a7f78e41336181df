"""`chatserver chat`: a client, as a screen for people and as a tool in a pipe."""
