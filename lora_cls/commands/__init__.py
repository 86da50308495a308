"""What the command line and Python call: one file a command."""
