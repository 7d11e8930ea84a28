"""Where items of work run: processes of this machine, and what can take their place."""
