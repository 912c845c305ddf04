"""What a caller may ask: one struct and one handler per command, all of them run by `transact`."""
