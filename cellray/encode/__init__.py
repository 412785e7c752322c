"""Token shards to label scores. Works without Ray; the pipeline wraps a scorer in an actor."""
