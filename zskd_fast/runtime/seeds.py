"""Numbers of the random streams, one per purpose, so that no two purposes ever share a draw."""

START_NOISE = 1
EPOCH_ORDER = 2
AFFINE = 3
FLIP = 4
MIX = 5
NOISE_SIGMA = 6
NOISE = 7
FRESH_NOISE = 8
