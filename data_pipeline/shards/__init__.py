"""Token shards: their bytes, and the manifest of a data set of them."""

MOST_ROWS = 2**20  # of a shard; a shard is made in memory
