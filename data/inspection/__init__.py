"""The parts of data.inspect: checks of a folder of shards, statistics of its captions, and the page about them."""
