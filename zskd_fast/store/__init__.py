"""Impressions on disk: manifest, shards, readers, verification, export."""
