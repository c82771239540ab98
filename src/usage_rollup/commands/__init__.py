"""What an operator types: options in, a report out, an exit status. May import every other room."""
