"""From impressions to a student: the distiller, its batches, augmentation, dormant units, checkpoints."""
