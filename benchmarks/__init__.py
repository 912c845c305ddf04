"""Us beside our peers, in one run on one machine: ratios. Absolute numbers say only where they were taken."""
