"""What affinities can and cannot tell about a tree."""
