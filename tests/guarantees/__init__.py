"""What the package guarantees, each kind of it in a file."""
