"""The audit bundle: the log in one file, with everything that it takes to check it far from here."""
