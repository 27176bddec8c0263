"""From a teacher to impressions: class similarity, plan, start noise, priors, the synthesizer, and the making of shards."""
