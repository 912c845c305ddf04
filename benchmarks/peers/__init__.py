"""What we are measured against, written as its own users would write it."""
