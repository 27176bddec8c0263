"""From a teacher to impressions: class similarity, plan, start noise, priors, synthesizer, making of shards."""
