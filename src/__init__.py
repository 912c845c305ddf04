"""Sightline: every material is received, processed, inspected and released, and every step is an event."""
