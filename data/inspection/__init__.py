"""What data.inspect does: checks of a folder of shards, statistics of its captions, and the page about them."""
