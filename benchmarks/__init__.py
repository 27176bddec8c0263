"""Timings of the ops and of whole jobs beside their alternatives and the limits of the machine."""
