"""Timings of the ops and of the whole job against their alternatives, and the limit of the machine beside them."""
