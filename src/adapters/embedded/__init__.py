"""The parts that production runs as servers of their own, started and ended with this process instead."""
